"""The engine killed under load, with a standby and without: who is told 503, and how long the others wait."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from service.host import usage
from tests.crew import Crew
from tests.drills import wire
from tests.drills.crowd import PHOTOS, address_of, options
from tests.drills.ending import PACE, _health, _held
from tests.drills.report import Report, spread
from tests.server import Server

#: What loading takes, as a real model's does from its cache; and the time that each request has, in seconds, with a
#: standby and without.
_LOAD_MS, _WITH, _WITHOUT = 2000, 2.0, 10.0
_CLIENTS = 8
#: Engines killed in one service: five that die young end it, on purpose.
_A_SERVICE = 4
_PATIENCE = 60.0


class Asking(Crew):
    """Clients that ask all the time, each request with ``seconds`` until its deadline."""

    def __init__(self, address: tuple[str, int], seconds: float) -> None:
        self.outcomes: list[wire.Outcome] = []
        self.wrong = 0
        self._address, self._timeout = address, str(round(1000 * seconds))
        self._lock = threading.Lock()
        super().__init__(*(partial(self._ask, number) for number in range(_CLIENTS)))

    def _ask(self, seed: int) -> None:
        rng = random.Random(seed)
        while not self._stop.is_set():
            photo, right = rng.choice(PHOTOS)
            outcome = wire.Client(self._address).ask(photo, X_Request_Timeout_Ms=self._timeout)
            with self._lock:
                self.outcomes.append(outcome)
                if outcome.status == 200:
                    self.wrong += outcome.document["predictions"][0]["class_id"] != right
            if outcome.status != 200:
                time.sleep(0.02)


def standby(times: int) -> Report:
    """Kills the engine ``times`` times each way."""
    report = Report(
        "standby", f"the engine killed {times} times with a standby and {times} times without, under load"
    )
    for there in (True, False):
        _kill(report, times, there)
    return report


def _kill(report: Report, times: int, there: bool) -> None:
    words = "with a standby" if there else "without"
    seconds = _WITH if there else _WITHOUT
    refused = late = lost = wrong = answered = in_flight = not_ready = 0
    waits: list[float] = []
    for start in range(0, times, _A_SERVICE):
        with _serving(there) as server, Asking(address_of(server.url), seconds) as asking:
            kills: list[float] = []
            for _ in range(min(_A_SERVICE, times - start)):
                time.sleep(0.5 + random.random())
                restarts = _health(address_of(server.url))["restarts"]
                os.kill(_engine(server), signal.SIGKILL)
                kills.append(time.monotonic())
                while _health(address_of(server.url))["restarts"] == restarts or not _settled(server, there):
                    not_ready += _ready(server) != 200
                    time.sleep(0.01)
            time.sleep(0.5)
        for outcome in asking.outcomes:
            ends = outcome.began + outcome.seconds
            met = any(outcome.began < kill - 0.01 and ends > kill for kill in kills)
            in_flight += met
            if met and outcome.status == 200:
                waits.append(outcome.seconds)
            refused += outcome.status == 503 and (met or there)
            late += outcome.status == 504
            lost += outcome.status in ("lost", "refused")
            answered += outcome.status == 200
        wrong += asking.wrong
    told = f"of {answered} answered, {in_flight} of them under way at a kill"
    whom = "nobody gets 503" if there else "nobody gets 503 who was under way"
    report.promise(f"{words}: {whom}, with {seconds:g} s to the deadline", refused == 0, f"{refused} {told}")
    report.promise(f"{words}: nobody is late", late == 0, f"{late} times 504")
    report.promise(
        f"{words}: nothing is lost or wrong", not lost and not wrong, f"{lost} lost, {wrong} wrong"
    )
    if there:
        report.promise(f"{words}: ready all the time", not_ready == 0, f"{not_ready} times not")
    report.figure(f"{words}: seconds of those under way at a kill", spread(waits, 1, 2))


@contextmanager
def _serving(there: bool) -> Iterator[Server]:
    with Server(**options(**PACE, LOAD_MS=_LOAD_MS, frontends=2, standby=there)) as server:
        _until_settled(server, there)
        yield server
        _until_settled(server, there)
        assert _held(server) == 0, "a slot is lost"
        assert server.terminate() == 0


def _until_settled(server: Server, there: bool) -> None:
    give_up = time.monotonic() + _PATIENCE
    while not _settled(server, there):
        assert time.monotonic() < give_up, "it never came back"
        time.sleep(0.02)


def _settled(server: Server, there: bool) -> bool:
    health = _health(address_of(server.url))
    return [one["state"] for one in health["engines"]] == ["serving", *["standby"] * there]


def _ready(server: Server) -> int | str:
    return wire.Client(address_of(server.url)).ask(b"", "/readyz", "GET").status


def _engine(server: Server) -> int:
    """The one that is asked."""
    for pid in usage.children(server.pid):
        with open(f"/proc/{pid}/comm") as name:
            if name.read().strip() == "engine":
                return pid
    raise AssertionError("there is no engine")
