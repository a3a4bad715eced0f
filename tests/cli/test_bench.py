"""The load generator: it counts what it did, keeps its rate, and charges a slow server for everybody's wait."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from service.cli.bench import loadgen
from service.cli.bench import run as bench
from service.cli.main import cli
from tests import tiny
from tests.server import Server
from tests.uploads import png

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Plain:
    """A server of one thread a connection that answers every request in the same way."""

    def __init__(self, answer: bytes = OK, delay: float = 0.0, body: int = 10) -> None:
        self.answer, self.delay, self._body = answer, delay, body
        self.requests = self.connections = 0
        self._one_at_a_time = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def plan(self, **load: float) -> loadgen.Plan:
        request = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % self._body + b"x" * self._body
        return loadgen.Plan("127.0.0.1", self.port, [request], **load)  # type: ignore[arg-type]

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            while True:
                length = 0
                while (line := stream.readline()) not in (b"\r\n", b""):
                    if line.startswith(b"content-length"):
                        length = int(line.split()[1])
                if not line:
                    return
                stream.read(length)
                with self._one_at_a_time:
                    self.requests += 1
                    time.sleep(self.delay)
                if not self.answer:
                    return
                connection.sendall(self.answer)
                if b"close" in self.answer:
                    return


@contextmanager
def plain(answer: bytes = OK, delay: float = 0.0, body: int = 10) -> Iterator[Plain]:
    server = Plain(answer, delay, body)
    yield server
    server.close()


@pytest.mark.parametrize("body", [0, 10, 3_000_000])
def test_the_closed_loop_keeps_its_connections_and_counts(body: int) -> None:
    with plain(body=body) as server:
        tally = loadgen.generate(server.plan(duration=0.4, clients=3))
    assert tally.sent == tally.answered == len(tally.latencies) == server.requests > 3
    assert dict(tally.statuses) == {200: tally.sent}
    assert server.connections == tally.most_connections == 3
    assert not tally.failures


def test_the_open_loop_keeps_its_rate() -> None:
    with plain() as server:
        tally = loadgen.generate(server.plan(duration=2.0, rate=200.0))
    assert tally.answered == tally.sent == server.requests == len(tally.lags)
    assert 300 < tally.sent < 500  # 400 +- 5 standard deviations of a Poisson process


def test_latency_counts_from_the_moment_a_request_was_due() -> None:
    """A server that does 20 a second and is asked for 100: its own time is 50 ms, its users wait for seconds."""
    with plain(delay=0.05) as server:
        tally = loadgen.generate(server.plan(duration=1.0, rate=100.0))
    assert len(tally.latencies) == tally.sent > 50
    assert max(tally.latencies) > 1.5
    assert bench.percentiles(tally.latencies)["p50"] > 500
    assert tally.in_time < 25


def test_a_request_that_finds_no_free_connection_waits_with_its_clock_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loadgen, "MAX_CONNECTIONS", 1)
    with plain(delay=0.05) as server:
        tally = loadgen.generate(server.plan(duration=1.0, rate=60.0))
    assert len(tally.latencies) == tally.sent
    assert server.connections == 1
    assert max(tally.latencies) > 1.0


def test_throughput_is_of_the_answers_in_the_window_whenever_they_were_sent() -> None:
    """In the closed loop every answer before the end is a request more, so there are as many of both."""
    with plain(delay=0.02) as server:
        tally = loadgen.generate(server.plan(duration=1.0, warm_up=0.6, clients=15))
    assert tally.in_time == tally.sent


def test_the_time_of_the_forward_pass_is_read_from_each_answer() -> None:
    timed = (
        b"HTTP/1.1 200 OK\r\nserver-timing: decode;dur=1.5, inference;dur=12.25\r\ncontent-length: 0\r\n\r\n"
    )
    with plain(timed) as server:
        tally = loadgen.generate(server.plan(duration=0.3, clients=1, timings=True))
    assert set(tally.inferences) == {0.01225}
    assert len(tally.inferences) == len(tally.latencies)
    with plain() as server:
        tally = loadgen.generate(server.plan(duration=0.3, clients=1, timings=True))
    assert np.isnan(tally.inferences).all()


def test_the_warm_up_does_not_count() -> None:
    with plain() as server:
        tally = loadgen.generate(server.plan(duration=0.6, warm_up=0.4, clients=1))
    assert tally.seconds == pytest.approx(0.2)
    assert 0 < tally.sent == tally.answered < server.requests == tally.cpu_requests


def test_a_server_that_closes_after_each_answer_is_connected_to_again() -> None:
    answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    with plain(answer) as server:
        tally = loadgen.generate(server.plan(duration=0.3, clients=2))
    assert tally.answered == server.requests == server.connections > 2
    assert not tally.failures


def test_chunked_answers_and_other_statuses_are_understood() -> None:
    answer = b"HTTP/1.1 429 Too Many\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    with plain(answer) as server:
        tally = loadgen.generate(server.plan(duration=0.2, clients=1))
    assert dict(tally.statuses) == {429: server.requests}
    assert not tally.latencies
    assert tally.throughput == 0


@pytest.mark.parametrize(
    ("answer", "failure"), [(b"", "closed by the server"), (b"SSH-2.0-OpenSSH\r\n", "not HTTP")]
)
def test_what_is_no_answer_is_a_failure(answer: bytes, failure: str) -> None:
    with plain(answer) as server:
        tally = loadgen.generate(server.plan(duration=0.3, clients=2))
    assert set(tally.failures) == {failure}
    assert tally.failures[failure] == tally.sent <= 10  # a client rests after a failure


def test_a_server_that_never_answers_is_given_up() -> None:
    with plain(delay=60) as server:
        tally = loadgen.generate(server.plan(duration=0.2, clients=2, timeout=0.5))
    assert tally.failures == {"timeout": 2}


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    # A duration that no test could wait for: it has to be told at once.
    outcome = CliRunner().invoke(
        cli, ["bench", f"http://127.0.0.1:{port}", "--duration=100000", "--size=8x8"]
    )
    assert outcome.exit_code == 1
    assert "Connection refused; is the service running there?" in outcome.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["https://example.com"],
        ["localhost:1", "--clients=2", "--rate=3"],
        ["localhost:1", "--size=large"],
        ["localhost:1", "--rate=0"],
        ["localhost:1", "--photo=/no/such/file"],
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(cli, ["bench", *arguments]).exit_code == 2


def test_percentiles_are_latencies_that_somebody_had() -> None:
    found = bench.percentiles([number / 1000 for number in range(1, 1001)])
    assert found == {
        "mean": 500.5, "p50": 501.0, "p90": 901.0, "p95": 951.0, "p99": 991.0, "p99.9": 1000.0, "max": 1000.0
    }  # fmt: skip
    assert bench.percentiles([]) == {}


def test_the_histogram_holds_everything_once() -> None:
    rows = bench.histogram([0.00001, 0.0012, 0.0012, 0.004, 1000.0])
    assert sum(row["count"] for row in rows) == 5
    assert rows[0] == {"le": 0.1, "count": 1}
    assert {"le": 1.5, "count": 2} in rows
    assert rows[-1]["count"] == 1
    assert bench.histogram([]) == []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    weights = tiny.shared()
    with Server(weights=weights, frontends=2, queue_capacity=64) as running:
        yield running


@pytest.mark.parametrize("load", [["--clients=4"], ["--rate=60"], ["--clients=2", "--form"]])
def test_its_counts_are_the_services(server: Server, tmp_path: Path, load: list[str]) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(png(1))
    name = 'imagenet_requests_total{route="/predict",status="200"}'
    before = server.metrics().get(name, 0)
    outcome = CliRunner().invoke(
        cli, ["bench", server.url, f"--photo={photo}", "--duration=1", "--format=json", *load]
    )
    assert outcome.exit_code == 0, outcome.stderr
    document = json.loads(outcome.stdout)
    assert document["statuses"] == {"200": document["sent"]}
    assert document["failures"] == {}
    assert server.metrics()[name] - before == document["sent"] > 0
    assert sum(row["count"] for row in document["histogram_ms"]) == document["sent"]


def test_the_table_is_for_people(server: Server) -> None:
    outcome = CliRunner().invoke(cli, ["bench", server.url, "--duration=0.5", "--size=64x48"])
    assert outcome.exit_code == 0
    for word in ("answers/s", "closed loop", "p99.9", "≤", "generator"):
        assert word in outcome.stdout
