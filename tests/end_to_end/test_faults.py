"""What a model, a kernel or an operator may do to the service, and what clients and probes are told meanwhile.

The service is the real one, in its own processes; its model does what an image tells it to (`tests/drills/hostile.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.engine.process import MIN_BATCH_LIMIT, longest_batch
from service.errors import ConfigurationError
from service.host import usage
from service.observability import metrics
from tests.drills.hostile import CRASH, ENDLESS, Trick, class_of, trick_image
from tests.server import HTTP, Server
from tests.uploads import png

#: Seconds: far above what anything here takes, on any machine.
PATIENCE = 60


def hostile(*, limit: float = 0, fixed: float = 0, **settings: Any) -> Server:
    environment = {"HOSTILE_LIMIT_S": str(limit), "HOSTILE_FIXED_MS": str(1000 * fixed)}
    return Server(module="tests.drills.hostile", environment=environment, **settings)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with hostile(frontends=2, queue_capacity=64) as running:
        yield running


def ask(server: Server, data: bytes, **options: Any) -> httpx.Response:
    return HTTP.post(server.url + "/predict", files={"file": data}, **options)


def code(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text
    problem = json.loads(answer.text, parse_constant=_no_json)
    return answer.status_code, problem["code"]


def _no_json(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def is_served(server: Server) -> bool:
    data = png(5)
    answer = ask(server, data)
    return answer.status_code == 200 and answer.json()["predictions"][0]["class_id"] == class_of(data)


def is_ready(server: Server) -> bool:
    health = HTTP.get(server.url + "/healthz").json()
    return HTTP.get(server.url + "/readyz").status_code == 200 and health["state"] == "ready"


def wait_for(condition: Any, complaint: str) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, complaint
        time.sleep(0.02)


@pytest.mark.parametrize("trick", [Trick.NAN, Trick.INFINITY])
def test_numbers_that_are_none_are_one_images_500_and_counted(server: Server, trick: Trick) -> None:
    before = server.metrics()["imagenet_nan_outputs_total"]
    images = [png(seed) for seed in range(7)]
    images.insert(3, trick_image(trick))
    answer = HTTP.post(server.url + "/predict/batch", files=[("files", image) for image in images])
    results = answer.json()["results"]
    bad = results.pop(3)
    assert (bad["status"], bad["error"]["code"]) == (500, "internal")
    del images[3]
    assert [entry["predictions"][0]["class_id"] for entry in results] == [class_of(image) for image in images]
    assert code(ask(server, trick_image(trick))) == (500, "internal")
    answer = HTTP.post(server.url + "/features", files={"file": trick_image(trick)})
    assert code(answer) == (500, "internal")
    assert server.metrics()["imagenet_nan_outputs_total"] == before + 3
    assert is_served(server)


@pytest.mark.parametrize("trick", [Trick.RAISE, Trick.MEMORY])
def test_a_model_that_raises_fails_its_batch_and_goes_on(server: Server, trick: Trick) -> None:
    assert code(ask(server, trick_image(trick))) == (500, "internal")
    assert is_ready(server)
    assert is_served(server)


def test_a_model_that_hangs_is_replaced() -> None:
    with hostile(frontends=2, limit=1) as server, ThreadPoolExecutor(4) as clients:
        hanging = clients.submit(ask, server, trick_image(Trick.HANG))
        wait_for(lambda: server.metrics()["imagenet_in_flight_requests"] == 1, "not admitted")
        behind = [clients.submit(ask, server, png(seed)) for seed in range(3)]
        assert HTTP.get(server.url + "/healthz").status_code == 200  # nothing waits behind the model
        assert code(hanging.result()) == (503, "engine_failed")
        # Another engine gets all four, and answers those that it comes to before it hangs as well.
        assert {one.result().status_code for one in behind} <= {200, 503}
        wait_for(lambda: is_ready(server), "never ready again")
        wait_for(lambda: is_served(server), "never served again")
        health = HTTP.get(server.url + "/healthz").json()
        assert health["restarts"] == 2  # they were given to one more engine, and to no third
        metrics = server.metrics()
        assert metrics["imagenet_in_flight_requests"] == 0
        assert metrics["imagenet_resubmitted_total"] == 4
        assert server.terminate() == 0
    assert any("a batch had been running" in line for line in server.lines)
    assert any("two engines died while they had the same image" in line for line in server.lines)


@pytest.mark.slow
def test_an_engine_that_hangs_while_it_loads_again_is_replaced(tmp_path: Path) -> None:
    environment = {"HOSTILE_SILENCE_S": "8", "HOSTILE_LOADS": str(tmp_path / "loads")}
    with Server(module="tests.drills.hostile", environment=environment, frontends=1) as server:
        os.kill(server.children()["engine"], signal.SIGKILL)
        wait_for(lambda: is_ready(server), "never ready again")
        assert HTTP.get(server.url + "/healthz").json()["restarts"] == 2
        assert is_served(server)
    assert any("engine was silent for" in line for line in server.lines)


@pytest.mark.slow
def test_a_service_that_nobody_asks_stays_as_it_is() -> None:
    environment = {"HOSTILE_SILENCE_S": "8"}
    with Server(module="tests.drills.hostile", environment=environment, frontends=1) as server:
        before, began = server.children(), time.monotonic()
        wait_for(lambda: time.monotonic() - began > 20, "time stands still")
        assert server.children() == before
        assert HTTP.get(server.url + "/healthz").json()["restarts"] == 0


def test_a_terminal_that_closes_ends_the_service_as_sigterm_does() -> None:
    with hostile(frontends=1, fixed=1, max_batch_size=1) as server, ThreadPoolExecutor(1) as clients:
        asked = clients.submit(ask, server, png(1))
        wait_for(lambda: server.metrics()["imagenet_in_flight_requests"] == 1, "not admitted")
        os.kill(server.pid, signal.SIGHUP)
        assert asked.result().status_code == 200
        assert server.wait() == 0


def test_an_engine_that_dies_again_and_again_ends_the_service_with_a_message() -> None:
    with hostile(frontends=1) as server:
        for _ in range(3):  # two engines each, but for the last
            wait_for(lambda: is_served(server), "never served again")
            assert code(ask(server, trick_image(Trick.EXIT))) == (503, "engine_failed")
        assert server.wait() == 1
    assert any("ended with exit code 70" in line and "giving up" in line for line in server.lines)


def test_a_front_end_that_cannot_live_ends_the_service_with_a_message() -> None:
    with hostile(frontends=1) as server:
        give_up = time.monotonic() + PATIENCE
        while server.poll() is None and time.monotonic() < give_up:
            for name, pid in server.children().items():
                if name != "engine":
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        assert server.wait() == 1
    assert any("SIGKILL" in line and "giving up" in line for line in server.lines)


def test_an_engine_that_dies_while_draining_leaves_nobody_without_an_answer() -> None:
    settings = {"frontends": 1, "max_batch_size": 1, "drain_delay_ms": 2000}
    with hostile(fixed=5, **settings) as server, ThreadPoolExecutor(2) as clients:
        asked = [clients.submit(ask, server, png(seed)) for seed in range(2)]
        wait_for(lambda: server.metrics()["imagenet_in_flight_requests"] == 2, "not admitted")
        engine = server.children()["engine"]
        os.kill(server.pid, signal.SIGTERM)
        wait_for(lambda: not is_ready(server), "SIGTERM was not heard")
        os.kill(engine, signal.SIGKILL)
        assert all(code(one.result()) == (503, "engine_failed") for one in asked)
        assert server.wait() == 1


def test_a_deadline_that_the_queue_cannot_meet_is_refused_at_once() -> None:
    with hostile(frontends=1, fixed=0.5, max_batch_size=1) as server, ThreadPoolExecutor(8) as clients:
        assert is_served(server)  # from here on it is known what a batch takes
        short = {"x-request-timeout-ms": "1100"}
        waiting = [clients.submit(ask, server, png(seed), headers=short) for seed in range(8)]
        answers = [one.result() for one in waiting]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert refused
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert all("request_timeout_ms" in answer.json()["detail"] for answer in refused)
        assert {answer.status_code for answer in answers} <= {200, 429, 504}
        wait_for(lambda: server.metrics()["imagenet_in_flight_requests"] == 0, "slots were lost")
        assert ask(server, png(1), headers={"x-request-timeout-ms": "1"}).status_code == 504  # idle: tried
        after = server.metrics()
        assert after["imagenet_late_work_total"] == 0
        assert after['imagenet_rejected_total{reason="overloaded"}'] == len(refused)


def test_a_batch_is_hung_after_many_times_what_it_took_when_warm() -> None:
    assert longest_batch(8, 0.0) == MIN_BATCH_LIMIT
    assert longest_batch(64, 1000.0) == MIN_BATCH_LIMIT
    assert longest_batch(64, 10.0) == pytest.approx(128.0)


def test_a_full_disk_for_the_counters_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", os.environ["PROMETHEUS_MULTIPROC_DIR"])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(
        "shutil.disk_usage", lambda path: type("", (), {"free": 1 << 20, "total": 1, "used": 1})
    )
    with pytest.raises(ConfigurationError, match="TMPDIR"):
        metrics.prepare()
    assert not list(tmp_path.iterdir())


def test_a_decode_without_end_is_ended_and_counted_and_harms_nobody(server: Server) -> None:
    before, counted = server.children(), killed(server)
    with ThreadPoolExecutor(4) as threads:
        late = {"headers": {"X-Request-Timeout-Ms": "400"}}
        endless = [threads.submit(ask, server, ENDLESS, **late) for _ in range(4)]
        while not all(answer.done() for answer in endless):
            assert is_served(server)
    assert {code(answer.result()) for answer in endless} == {(504, "deadline_exceeded")}
    assert code(ask(server, CRASH)) == (422, "invalid_image")
    # The crash and one at least: on a busy machine the time of the others may be over before they begin.
    wait_for(lambda: counted + 2 <= killed(server) <= counted + 5, "not all were counted")
    wait_for(lambda: server.metrics()["imagenet_in_flight_requests"] == 0, "a slot is lost")
    assert is_served(server)
    assert is_ready(server)
    assert server.children() == before


def killed(server: Server) -> float:
    return sum(value for name, value in server.metrics().items() if "decodes_killed" in name)


def test_an_end_in_the_middle_of_a_decode_without_end_answers_everybody() -> None:
    with hostile(frontends=1, drain_timeout_ms=1500) as server, ThreadPoolExecutor(3) as threads:
        endless = [threads.submit(ask, server, ENDLESS) for _ in range(3)]
        wait_for(lambda: server.metrics()["imagenet_in_flight_requests"] == 3, "they were never admitted")
        assert server.terminate() == 0
        assert {code(answer.result()) for answer in endless} == {(503, "draining")}


def test_a_front_end_whose_keeper_is_killed_is_replaced() -> None:
    with hostile(frontends=1) as server:
        front_end = server.children()["frontend-1"]
        (keeper,) = usage.children(front_end)
        os.kill(keeper, signal.SIGKILL)
        wait_for(lambda: server.children().get("frontend-1") not in (None, front_end), "it was not replaced")
        server.wait_ready()
        assert is_served(server)
