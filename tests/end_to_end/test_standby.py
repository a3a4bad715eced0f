"""A second engine that takes over when the first dies, and requests that wait for the next one without it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import pytest

from benchmarks.processes import free_port
from service.api.grpc import schema
from service.host import usage
from tests import tiny
from tests.api.test_open_inference import pictures
from tests.drills.crowd import options
from tests.end_to_end.test_switching import Asking, health, until, usage_name
from tests.server import HTTP, Server
from tests.uploads import png

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="parts are processes there")


def engine(server: Server, name: str) -> int:
    """The process of the engine with this name; 0 while there is none."""
    return next((pid for pid in usage.children(server.pid) if usage_name(pid) == name), 0)


def states(server: Server) -> list[str]:
    return [one["state"] for one in health(server)["engines"]]


def kill(server: Server, name: str) -> None:
    """And waits until another one is there in its place."""
    victim = engine(server, name)
    os.kill(victim, signal.SIGKILL)
    until(lambda: engine(server, name) not in (0, victim))
    until(lambda: states(server) == ["serving", "standby"])


def test_a_standby_takes_over_and_nobody_notices() -> None:
    settings = options(FIXED_MS=5, IMAGE_MS=1, LOAD_MS=700, frontends=2, standby=True)
    with Server(**settings) as server:
        until(lambda: states(server) == ["serving", "standby"])
        with Asking(server, 8) as asking:
            until(lambda: sum(asking.statuses.values()) > 20)
            kill(server, "engine")
            assert HTTP.get(server.url + "/readyz").status_code == 200
            before = sum(asking.statuses.values())
            until(lambda: sum(asking.statuses.values()) > before + 20)
            kill(server, "engine-2")  # nobody had anything with it
            kill(server, "engine")
        assert set(asking.statuses) == {200}
        assert not asking.wrong
        told, metrics = health(server), server.metrics()
        assert (told["state"], told["restarts"]) == ("ready", 3)
        assert 0 < metrics["imagenet_resubmitted_total"] <= 2 * 8
        assert metrics['imagenet_engines{state="standby"}'] == 1
        until(lambda: server.metrics()["imagenet_in_flight_requests"] == 0)
        assert server.terminate() == 0


@pytest.mark.slow
def test_without_a_standby_whoever_has_time_left_waits_for_the_next_engine() -> None:
    settings = options(FIXED_MS=700, LOAD_MS=1000, frontends=1, max_batch_size=1)
    with Server(**settings) as server, ThreadPoolExecutor(3) as clients:
        victim = engine(server, "engine")
        asked = [
            clients.submit(HTTP.post, server.url + "/predict", files={"file": png(seed)}, headers=headers)
            for seed, headers in enumerate([{}, {}, {"x-request-timeout-ms": "900"}])
        ]
        until(lambda: server.metrics()["imagenet_in_flight_requests"] == 3)
        os.kill(victim, signal.SIGKILL)
        until(lambda: HTTP.get(server.url + "/readyz").status_code == 503)  # newcomers may go elsewhere
        assert HTTP.post(server.url + "/predict", files={"file": png(9)}).status_code == 503
        assert [one.result().status_code for one in asked[:2]] == [200, 200]
        assert asked[2].result().status_code in (200, 504)  # it had run before the kill, or it is late now
        assert HTTP.get(server.url + "/readyz").status_code == 200


def assert_close(answer: Any, before: Any) -> None:
    """The same answer: a batch of another size may round otherwise."""
    if isinstance(before, dict):
        assert answer.keys() == before.keys()
        for key in before:
            assert_close(answer[key], before[key])
    elif isinstance(before, list):
        assert len(answer) == len(before)
        for one, other in zip(answer, before, strict=True):
            assert_close(one, other)
    elif isinstance(before, float):
        assert answer == pytest.approx(before, abs=1e-5)
    else:
        assert answer == before


@pytest.mark.slow
def test_every_kind_of_request_survives_the_death_of_its_engine() -> None:
    # The engine waits for company, so that all of them are with it when it dies.
    settings: dict[str, Any] = {"max_queue_delay_ms": 2500, "max_batch_size": 32, "grpc_port": free_port()}
    with Server(weights=tiny.shared(), frontends=1, standby=True, **settings) as server:
        until(lambda: states(server) == ["serving", "standby"])

        def post(path: str, data: bytes = png(1), **headers: str) -> httpx.Response:
            return HTTP.post(
                server.url + path, content=data, headers={"content-type": "image/png", **headers}
            )

        def batch() -> httpx.Response:
            return HTTP.post(server.url + "/predict/batch", files=[("files", png(seed)) for seed in range(3)])

        name = HTTP.get(server.url + "/model").json()["name"]

        def v2() -> httpx.Response:
            return HTTP.post(
                f"{server.url}/v2/models/{name}/infer", json={"inputs": [pictures(png(1), png(2))]}
            )

        kinds: list[Callable[[], httpx.Response]] = [
            lambda: post("/predict"),
            lambda: post("/predict", **{"x-priority": "bulk"}),  # type: ignore[arg-type]
            lambda: post("/features"),
            lambda: post("/features?pooling=none"),
            lambda: post("/explain"),
            batch,
            v2,
        ]
        images = len(kinds) + 2 + 1  # of a batch three, of /v2 two
        with ThreadPoolExecutor(len(kinds) + 1) as clients:
            alone = list(clients.map(lambda kind: kind(), kinds))
            asked = [clients.submit(kind) for kind in kinds]
            over_grpc = clients.submit(infer, settings["grpc_port"], name)
            # All but the bulk one, which runs alone while nobody else waits.
            until(lambda: server.metrics()["imagenet_in_flight_requests"] >= images)
            os.kill(engine(server, "engine"), signal.SIGKILL)
            answers = [one.result() for one in asked]
            assert over_grpc.result() == name
        assert [answer.status_code for answer in answers] == [200] * len(kinds)
        for answer, before in zip(answers, alone, strict=True):
            for key in ("predictions", "explanation", "results", "outputs"):
                assert_close(answer.json().get(key), before.json().get(key))
        assert server.metrics()["imagenet_resubmitted_total"] >= images


def infer(port: int, name: str) -> str:
    """Over gRPC; the name of the model that has answered."""
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [png(1)]}}
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        invoke = channel.unary_unary(
            f"/{schema.SERVICE}/ModelInfer",
            request_serializer=schema.message("ModelInferRequest").SerializeToString,
            response_deserializer=schema.message("ModelInferResponse").FromString,
        )
        request = schema.message("ModelInferRequest")(model_name=name, inputs=[tensor])
        return str(invoke(request, timeout=60).model_name)
