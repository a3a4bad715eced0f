"""Two engines behind one port, with the real service around a model that answers a function of the pixels."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from service.host import usage
from tests.drills.crowd import options
from tests.end_to_end.test_switching import Asking, engines, health, load, until, usage_name
from tests.server import HTTP, Server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="parts are processes there")


def serving(server: Server) -> int:
    return sum(
        engine["state"] == "serving" for engine in health(server)["engines"] if engine["role"] == "current"
    )


def kill_one(server: Server, asking: Asking) -> None:
    """The other goes on, and the service is ready all the time."""
    victim = engines(server)[0]
    before = sum(asking.statuses.values())
    os.kill(victim, signal.SIGKILL)
    until(lambda: victim not in engines(server))
    assert HTTP.get(server.url + "/readyz").status_code == 200
    until(lambda: sum(asking.statuses.values()) > before + 20)
    until(lambda: serving(server) == 2)


def test_one_of_two_engines_dies_alone_and_comes_back() -> None:
    settings = options(
        FIXED_MS=5, IMAGE_MS=1, frontends=2, device="cpu,cpu", queue_capacity=64, model_control="open"
    )
    with Server(**settings) as server:
        until(lambda: serving(server) == 2)
        cores = {frozenset(os.sched_getaffinity(pid)) for pid in engines(server)}
        assert len(cores) == min(2, os.cpu_count() or 1)
        with Asking(server, 8) as asking:
            until(lambda: sum(asking.statuses.values()) > 20)
            for _ in range(2):
                kill_one(server, asking)
            assert load(server, 0).status_code == 200  # both of them are replaced
            assert serving(server) == 2
        assert not asking.wrong
        assert set(asking.statuses) <= {200, 503}
        assert asking.statuses.get(503, 0) <= 2 * 8  # at most what was on the dead ones
        told = health(server)
        assert (told["state"], told["restarts"]) == ("ready", 2)
        metrics = server.metrics()
        assert metrics['imagenet_engines{state="serving"}'] == 2
        assert metrics["imagenet_engine_up"] == 1
        until(lambda: server.metrics()["imagenet_in_flight_requests"] == 0)
        assert {usage_name(pid).partition("-")[0] for pid in usage.children(server.pid)} == {
            "engine",
            "frontend",
        }
        assert server.terminate() == 0
