"""Another model under load, with the real service around a model that answers a function of pixels and weights."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from service.cli.main import cli
from service.errors import ConfigurationError
from service.host import usage
from tests import tiny
from tests.crew import Crew
from tests.drills.crowd import PHOTOS, options
from tests.drills.hostile import BROKEN, CLASSES, DEADLY, MISSING, shift
from tests.server import HTTP, Server
from tests.uploads import png

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="parts are processes there")

#: Seconds for what takes a moment on a machine with nothing else to do.
PATIENCE = 60.0


def order(server: Server, path: str, **document: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=document, timeout=PATIENCE)


def load(server: Server, seed: int, **document: Any) -> httpx.Response:
    return order(server, "/models/load", weights=f"random:{seed}", **document)


def health(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = HTTP.get(server.url + "/healthz").json()
    return found


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, "it did not happen"
        time.sleep(0.02)


def engines(server: Server) -> list[int]:
    """Process ids."""
    return [pid for pid in usage.children(server.pid) if usage_name(pid).startswith("engine")]


def usage_name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


class Asking(Crew):
    """Clients that ask all the time; what they were told has to fit the weights that the answer names."""

    def __init__(self, server: Server, clients: int = 4) -> None:
        super().__init__(*(partial(self._ask, number) for number in range(clients)))
        self.statuses: dict[int, int] = {}
        self.weights: list[str] = []
        self.wrong: list[str] = []
        self._server = server
        self._lock = threading.Lock()

    def _ask(self, number: int) -> None:
        photo, right = PHOTOS[number]
        with httpx.Client(timeout=PATIENCE) as http:
            while not self._stop.is_set():
                answer = http.post(self._server.url + "/predict", files={"file": photo})
                with self._lock:
                    self.statuses[answer.status_code] = self.statuses.get(answer.status_code, 0) + 1
                    if answer.status_code == 200:
                        self._judge(answer.json(), right)

    def _judge(self, document: dict[str, Any], right: int) -> None:
        weights, found = document["weights"], document["predictions"][0]["class_id"]
        if not self.weights or self.weights[-1] != weights:
            self.weights.append(weights)
        if found != (right + shift(weights)) % CLASSES:
            self.wrong.append(f"{weights} answered {found}")


def test_switches_and_rollbacks_under_load_lose_nothing() -> None:
    settings = options(FIXED_MS=5, IMAGE_MS=1, frontends=2, model_control="open", weights="random:1")
    with Server(**settings) as server, Asking(server) as asking:
        until(lambda: sum(asking.statuses.values()) > 5)
        for seed in (2, 3):
            answer = load(server, seed)
            assert answer.status_code == 200, answer.text
            assert answer.json()["weights"] == f"random:{seed}"
            assert answer.json()["previous"]["weights"] == f"random:{seed - 1}"
            assert answer.json()["agreement"] == 0.0  # each seed answers another class
            # From here on nobody gets an answer of the old one, whichever front-end is asked.
            for _ in range(8):
                told = HTTP.post(server.url + "/predict", files={"file": png(1)}).json()
                assert (
                    told["weights"] == HTTP.get(server.url + "/model").json()["weights"] == f"random:{seed}"
                )
        for seed in (2, 3, 2):
            answer = order(server, "/models/rollback")
            assert answer.status_code == 200, answer.text
            assert HTTP.get(server.url + "/model").json()["weights"] == f"random:{seed}"
        told = health(server)
        assert told["state"] == "ready"
        assert told["restarts"] == 0
        assert told["switches"] == {"switched": 2, "failed": 0, "rolled_back": 3}
        assert {engine["role"] for engine in told["engines"]} <= {"current", "kept", "leaving"}
        until(lambda: len(engines(server)) == 2)
        before = sum(asking.statuses.values())
        until(lambda: sum(asking.statuses.values()) > before + 5)
    assert set(asking.statuses) == {200}
    assert not asking.wrong
    assert server.poll() is not None


def test_a_load_that_fails_changes_nothing_and_says_why() -> None:
    settings = options(FIXED_MS=1, frontends=1, model_control="open", weights="random:1", keep_previous_ms=0)
    with Server(**settings) as server, Asking(server, 2) as asking:
        (engine,) = engines(server)
        for seed, words in (
            (MISSING, "there are no such weights"),
            (DEADLY, "SIGKILL"),
            (BROKEN, "NaN"),
        ):
            answer = load(server, seed)
            assert (answer.status_code, answer.json()["code"]) == (422, "load_failed"), answer.text
            assert words in answer.json()["detail"]
            told = health(server)
            assert (told["state"], told["switch"]["stage"]) == ("ready", "failed")
            assert words in told["switch"]["detail"]
        answer = load(server, 2, least_agreement=0.5)
        assert "agrees" in answer.json()["detail"]
        assert order(server, "/models/load", weights="/nowhere/x.pth").status_code == 422
        assert order(server, "/models/load", model="vgg99").json()["code"] == "invalid_parameter"
        assert order(server, "/models/rollback").status_code == 409
        until(lambda: engines(server) == [engine])  # the same as before, and nobody else
        assert health(server)["switches"]["switched"] == 0
        metrics = server.metrics()
        assert metrics['imagenet_switches_total{outcome="failed"}'] == 5
        assert load(server, 2).status_code == 200  # the next one is not held up
        assert order(server, "/models/rollback").status_code == 409  # nothing is kept for 0 ms
        until(lambda: len(engines(server)) == 1)
    assert set(asking.statuses) == {200}
    assert set(asking.weights) == {"random:1", "random:2"}
    assert not asking.wrong


def test_two_loads_at_once_a_dead_old_engine_and_an_end_in_the_middle() -> None:
    settings = options(FIXED_MS=1, LOAD_MS=1500, frontends=1, model_control="open", weights="random:1")
    with Server(**settings) as server:
        (old,) = engines(server)
        assert load(server, 2, wait=False).status_code == 202
        answer = load(server, 3)
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
        until(lambda: len(engines(server)) == 2)
        os.kill(old, signal.SIGKILL)
        # Whichever is there first: the new one takes over, or the old one comes back and is switched from.
        until(lambda: health(server)["switches"].get("switched") == 1)
        assert HTTP.post(server.url + "/predict", files={"file": png(1)}).json()["weights"] == "random:2"
        until(lambda: all(engine["role"] != "leaving" for engine in health(server)["engines"]))
        statuses: list[int] = []
        waiting = threading.Thread(target=lambda: statuses.append(load(server, 4).status_code))
        waiting.start()
        until(lambda: bool((health(server)["switch"] or {}).get("stage") == "loading"))
        assert server.terminate() == 0
        waiting.join(PATIENCE)
    assert statuses == [503]


def test_a_front_end_that_dies_while_its_client_waits_for_a_load_takes_nothing_with_it() -> None:
    settings = options(FIXED_MS=1, LOAD_MS=1000, frontends=2, model_control="open", weights="random:1")
    with Server(**settings) as server:
        ended: list[str] = []

        def wait() -> None:
            try:
                ended.append(str(load(server, 2).status_code))
            except httpx.TransportError:
                ended.append("broken")

        waiting = threading.Thread(target=wait)
        waiting.start()
        until(lambda: (health(server)["switch"] or {}).get("stage") == "loading")
        for name, pid in server.children().items():
            if name.startswith("frontend"):
                os.kill(pid, signal.SIGKILL)
        waiting.join(PATIENCE)
        assert ended == ["broken"]
        until(lambda: answers(server) and health(server)["switches"].get("switched") == 1)
        assert HTTP.post(server.url + "/predict", files={"file": png(1)}).json()["weights"] == "random:2"
        assert server.terminate() == 0


def answers(server: Server) -> bool:
    try:
        return HTTP.get(server.url + "/livez").status_code == 200
    except httpx.TransportError:
        return False


def test_changed_weights_are_loaded_by_themselves_and_the_command_switches(tmp_path: Path) -> None:
    weights, key = tiny.directory(tmp_path), tmp_path / "keys"
    file = next(path for path in weights.iterdir() if path.suffix == ".safetensors")
    key.write_text("secret\n")
    settings = options(weights=weights, watch_weights_ms=20, frontends=1, api_keys_file=key)
    headers = {"x-api-key": "secret"}

    def told() -> dict[str, Any]:
        found: dict[str, Any] = HTTP.get(server.url + "/healthz", headers=headers).json()
        return found

    touched = [0.0]

    def changes() -> bool:
        """The weights change, now and then: one change may be older than the first look at them."""
        if not told()["switch"] and time.monotonic() > touched[0] + 5:
            os.utime(file)
            touched[0] = time.monotonic()
        return bool(told()["switches"].get("switched"))

    def command(*arguments: str, key: str | None = "secret") -> Result:
        environment = {"IMAGENET_API_KEY": key}
        return CliRunner().invoke(cli, ["switch", server.url, *arguments], env=environment)

    with Server(**settings) as server:
        until(lambda: told()["state"] == "ready")
        until(changes)
        until(lambda: told()["switch"]["stage"] == "switched")
        with pytest.raises(ConfigurationError, match="wants a key"):
            raise command("--rollback", key=None).exception or AssertionError
        done = command("--rollback")
        assert done.exit_code == 0
        assert "answers now, in place of" in done.output
        assert told()["switches"]["rolled_back"] == 1
        with pytest.raises(ConfigurationError, match="422: there are no weights"):
            raise command("--weights=/nowhere.pth").exception or AssertionError
        assert command("--rollback", "--weights=x").exit_code == 2
