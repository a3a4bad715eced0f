"""Traces from a real server to a collector on loopback, exemplars in OpenMetrics, and nothing of it when off."""

from __future__ import annotations

import http.server
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from service.observability import tracing
from tests import tiny
from tests.server import HTTP, Server
from tests.uploads import png

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOT_SAMPLED = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
#: Seconds for a span to arrive on a busy machine.
PATIENCE = 60.0
OPENMETRICS = {"accept": "application/openmetrics-text; version=1.0.0"}


class Collector:
    """Takes OTLP as protobuf over HTTP, like a collector's port 4318."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                assert self.path == "/v1/traces"
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None:
                """Nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            self.resources.append({one.key: one.value.string_value for one in resource.resource.attributes})
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)

    def of(self, trace: str) -> dict[str, list[Any]]:
        """The spans of a trace by name."""
        found: dict[str, list[Any]] = {}
        for span in list(self.spans):
            if span.trace_id.hex() == trace:
                found.setdefault(span.name, []).append(span)
        return found

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(scope="module")
def server(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    environment = {
        **os.environ,
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test",
    }
    weights = tiny.shared()
    with Server(weights=weights, runtime="eager", frontends=1, environment=environment) as server:
        yield server


def soon(found: Callable[[], Any]) -> Any:
    give_up = time.monotonic() + PATIENCE
    while not (result := found()):
        assert time.monotonic() < give_up, "it did not come"
        time.sleep(0.05)
    return result


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def test_a_request_becomes_a_span_with_its_stages(server: Server, collector: Collector) -> None:
    answer = HTTP.post(f"{server.url}/predict", files={"file": png(3)}, headers={"traceparent": PARENT})
    assert answer.status_code == 200
    trace = PARENT.split("-")[1]
    spans = soon(lambda: (found := collector.of(trace)).get("POST /predict") and found)
    (root,) = spans["POST /predict"]
    assert root.parent_span_id.hex() == PARENT.split("-")[2]
    told = attributes(root)
    assert told["http.route"] == "/predict"
    assert told["http.response.status_code"] == 200
    assert told["imagenet.request.id"] == answer.json()["request_id"]
    stages = [spans[name][0] for name in ("receive", "decode", "queue", "inference")]
    assert all(one.parent_span_id == root.span_id for one in stages)
    for one, following in pairwise(stages):
        assert (
            one.start_time_unix_nano <= one.end_time_unix_nano <= following.start_time_unix_nano + 1_000_000
        )
    assert root.start_time_unix_nano <= stages[0].start_time_unix_nano
    assert stages[-1].end_time_unix_nano <= root.end_time_unix_nano
    assert abs(root.start_time_unix_nano / 1e9 - time.time()) < PATIENCE + 60
    assert attributes(stages[-1])["imagenet.batch.id"] >= 1
    assert attributes(stages[-1])["imagenet.batch.size"] == 1
    milliseconds = (stages[-1].end_time_unix_nano - stages[-1].start_time_unix_nano) / 1e6
    assert milliseconds == pytest.approx(answer.json()["timings_ms"]["inference"], abs=0.01)
    assert {"service.name": "imagenet-serve", "deployment.environment": "test"}.items() <= (
        collector.resources[0].items()
    )
    assert any(f"trace_id={trace}" in line or f'"trace_id": "{trace}"' in line for line in server.lines)


def test_each_image_of_a_request_has_its_own(server: Server, collector: Collector) -> None:
    trace = "2af7651916cd43dd8448eb211c80319c"
    files = [("files", (f"{number}.png", png(3), "image/png")) for number in range(3)]
    HTTP.post(
        f"{server.url}/predict/batch",
        files=files,
        headers={"traceparent": PARENT.replace(PARENT[3:35], trace)},
    )
    spans = soon(lambda: (found := collector.of(trace)).get("POST /predict/batch") and found)
    assert len(spans["decode"]) == len(spans["queue"]) == len(spans["inference"]) == 3


def test_an_error_s_span_says_which(server: Server, collector: Collector) -> None:
    trace = "3af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": PARENT.replace(PARENT[3:35], trace), "content-type": "image/png"}
    assert HTTP.post(f"{server.url}/predict", content=b"no image", headers=headers).status_code == 415
    (root,) = soon(lambda: collector.of(trace).get("POST /predict"))
    assert attributes(root)["http.response.status_code"] == 415
    assert "inference" not in collector.of(trace)


def test_what_the_caller_does_not_sample_is_not_sent(server: Server, collector: Collector) -> None:
    HTTP.post(f"{server.url}/predict", files={"file": png(3)}, headers={"traceparent": NOT_SAMPLED})
    HTTP.get(f"{server.url}/readyz", headers={"traceparent": NOT_SAMPLED[:-1] + "1"})
    later = "4af7651916cd43dd8448eb211c80319c"
    HTTP.post(
        f"{server.url}/predict", files={"file": png(3)}, headers={"traceparent": f"00-{later}-{'b' * 16}-01"}
    )
    soon(lambda: collector.of(later))
    assert not collector.of(NOT_SAMPLED.split("-")[1])


def test_exemplars_name_the_trace_in_openmetrics_alone(server: Server) -> None:
    trace = "5af7651916cd43dd8448eb211c80319c"
    HTTP.post(
        f"{server.url}/predict", files={"file": png(3)}, headers={"traceparent": f"00-{trace}-{'b' * 16}-01"}
    )
    pattern = rf'imagenet_stage_duration_seconds_bucket{{.*stage="inference".*}} \S+ # {{.*trace_id="{trace}".*}} (\S+)'
    scrape = soon(
        lambda: (
            (text := HTTP.get(f"{server.url}/metrics", headers=OPENMETRICS).text) and trace in text and text
        )
    )
    assert scrape.rstrip().endswith("# EOF")
    found = re.search(pattern, scrape)
    assert found is not None
    bound = re.search(r'le="([^"]+)"', found[0])
    assert bound is not None
    assert float(found[1]) <= float(bound[1])
    assert "# {" not in HTTP.get(f"{server.url}/metrics").text


def test_openmetrics_and_text_count_the_same(server: Server) -> None:
    """Prometheus asks for OpenMetrics: no series may change its name with it."""
    ours = re.compile(r"^(imagenet_\w+(?:\{[^}]*\})?) ", re.M)
    HTTP.get(f"{server.url}/metrics")  # counted in the next
    plain = set(ours.findall(HTTP.get(f"{server.url}/metrics").text))
    rich = set(ours.findall(HTTP.get(f"{server.url}/metrics", headers=OPENMETRICS).text))
    assert plain == rich


def test_a_collector_that_goes_away_holds_nobody(server: Server, collector: Collector) -> None:
    """The last of this server's: requests are answered, and it ends as always though its spans cannot leave."""
    collector.close()
    assert HTTP.post(f"{server.url}/predict", files={"file": png(3)}).status_code == 200
    assert server.terminate() == 0


# ---- off, or in the way ----------------------------------------------------------------------------------------------

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    "environment",
    [{}, {**ENDPOINT, "OTEL_SDK_DISABLED": "true"}, {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}],
)
def test_off_unless_asked_for(environment: dict[str, str]) -> None:
    assert not tracing.wanted(environment)
    assert tracing.obstacle(environment) is None


def test_off_nothing_is_imported() -> None:
    code = (
        "import sys; from service.observability.tracing import Tracing; assert Tracing.from_environment() is None; "
        "print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_an_endpoint_without_the_extra_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "find_spec", lambda name: None)
    problem = tracing.obstacle(ENDPOINT)
    assert problem is not None
    assert "pip install --editable" in problem
    assert "[otel]" in problem


def test_a_protocol_that_is_not_spoken_is_said() -> None:
    problem = tracing.obstacle({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    assert problem is not None
    assert "4318" in problem
