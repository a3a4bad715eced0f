"""Pictures that cost more than they look like, beside normal traffic: files of a grammar, and decodes without end."""

from __future__ import annotations

import itertools
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from service.host import usage
from tests.drills import grammar, wire
from tests.drills.crowd import Crowd, address_of, options
from tests.drills.hostile import CRASH, ENDLESS
from tests.drills.report import Report
from tests.server import HTTP, Server

#: The deadline of a hostile request, and what may pass until its answer and the end of its work: seconds.
_DEADLINE, _AFTER = 3.0, 1.0
#: Clients with good photos, and the seconds that each pauses between two: far below what the service can do, so that
#: they measure who holds it up and not what it can do.
_CLIENTS, _PAUSE = {"kept": 3}, 0.03
_ALLOWED = frozenset({200, 400, 413, 415, 422, 429, 504})
#: Share of a core that a service may use which nobody asks for anything: heartbeats, gauges.
_IDLE = 0.15


class Hostile(threading.Thread):
    """Sends hostile pictures, one after the other, until they are all sent or it is told to end."""

    def __init__(self, address: tuple[str, int], pictures: Iterator[tuple[str, bytes]]) -> None:
        super().__init__(daemon=True)
        self.outcomes: list[tuple[str, wire.Outcome]] = []
        self.ended = threading.Event()
        self._client = wire.Client(address)
        self._pictures = pictures

    def run(self) -> None:
        for name, data in self._pictures:
            if self.ended.is_set():
                return
            outcome = self._client.ask(data, X_Request_Timeout_Ms=f"{1000 * _DEADLINE:.0f}")
            self.outcomes.append((name, outcome))


class Readiness(threading.Thread):
    """Asks for readiness twice a second."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.statuses: Counter[int] = Counter()
        self.ended = threading.Event()
        self._url = url

    def run(self) -> None:
        while not self.ended.wait(0.5):
            self.statuses[HTTP.get(f"{self._url}/readyz").status_code] += 1


def effort(files: int, seconds: float, seed: int = 0) -> Report:
    """``files`` of the grammar, each once, with endless and crashing decodes between them for the whole time."""
    report = Report("effort")
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(**options(IMAGE_MS=1, frontends=1)) as server,
    ):
        made = _written(Path(folder), range(seed, seed + files))
        address = address_of(server.url)
        _rate(address, 2.0)  # everything is warm
        quiet = _rate(address, seconds)
        before, pids = server.metrics(), server.children()
        hostile = [
            Hostile(address, ((path.name, path.read_bytes()) for path in made)),
            Hostile(address, itertools.repeat(("without end", ENDLESS))),
            Hostile(address, itertools.cycle([("crash", CRASH), ("without end", ENDLESS)])),
        ]
        readiness = Readiness(server.url)
        for thread in (*hostile, readiness):
            thread.start()
        began = time.monotonic()
        with Crowd(address, _CLIENTS, think=_PAUSE) as crowd:
            hostile[0].join()
            time.sleep(max(0.0, began + seconds - time.monotonic()))
            for thread in hostile:
                thread.ended.set()
            took = time.monotonic() - began
        for thread in hostile:
            thread.join()
        readiness.ended.set()
        time.sleep(_AFTER)
        idle = _busy(server.pid, 2.0)
        after = server.metrics()
        same = server.children() == pids
    outcomes = [pair for thread in hostile for pair in thread.outcomes]
    killed = Counter(
        {name: value - before.get(name, 0) for name, value in after.items() if "decodes_killed" in name}
    )
    report.tried = (
        f"{len(outcomes)} hostile pictures in {took:.0f} s, {len(hostile[0].outcomes)} of them files of the grammar, "
        f"beside {crowd.ledger.asked} good ones"
    )
    goodput = crowd.ledger.count(200) / took / quiet
    report.promise(
        "the others' goodput at least 95 %", goodput >= 0.95, f"{goodput:.1%} of {quiet:.1f} a second"
    )
    report.promise(
        "nobody else is lost or answered wrongly",
        not crowd.ledger.wrong and not crowd.ledger.lost,
        f"{dict(crowd.ledger.statuses)} {crowd.ledger.wrong[:2] or ''}",
    )
    strange = [f"{name}: {outcome.status}" for name, outcome in outcomes if outcome.status not in _ALLOWED]
    report.promise(
        "each hostile picture gets an answer of the contract",
        not strange,
        strange[:5] or str(dict(Counter(outcome.status for _, outcome in outcomes))),
    )
    slowest = max(outcome.seconds for _, outcome in outcomes)
    report.promise(
        f"... within its deadline and {_AFTER:.0f} s", slowest <= _DEADLINE + _AFTER, f"{slowest:.2f} s"
    )
    report.promise(f"no work is left {_AFTER:.0f} s later", idle <= _IDLE, f"{idle:.2f} cores")
    report.promise(
        "killed decodes are counted", sum(killed.values()) >= len(hostile[1].outcomes), dict(killed)
    )
    report.promise("ready all the time", set(readiness.statuses) == {200}, dict(readiness.statuses))
    report.promise("the same engine and front-end", same, f"{len(pids)} processes")
    _end_in_the_middle(report)
    return report


def _written(folder: Path, seeds: range) -> list[Path]:
    """The grammar's files, made before anything is measured."""
    paths = []
    for name, data in map(grammar.file, seeds):
        paths.append(folder / name)
        paths[-1].write_bytes(data)
    return paths


def _end_in_the_middle(report: Report) -> None:
    """SIGTERM while every decoder is in a picture without end."""
    timeout = 4.0
    with Server(**options(frontends=1, drain_timeout_ms=1000 * timeout)) as server:
        address = address_of(server.url)
        endless = [Hostile(address, itertools.repeat(("without end", ENDLESS), 1)) for _ in range(6)]
        for thread in endless:
            thread.start()
        while server.metrics()["imagenet_in_flight_requests"] < len(endless):
            time.sleep(0.02)
        os.kill(server.pid, signal.SIGTERM)
        began = time.monotonic()
        code = server.wait()
        took = time.monotonic() - began
        for thread in endless:
            thread.join()
    statuses = Counter(outcome.status for thread in endless for _, outcome in thread.outcomes)
    report.promise("SIGTERM in the middle of it: exit code 0", code == 0, f"{code}, after {took:.1f} s")
    report.promise("... within drain_timeout_ms", took <= timeout + 1, f"{took:.1f} s of {timeout:.0f}")
    report.promise("... and everybody is answered", set(statuses) <= {503, 504, 422}, dict(statuses))


def _rate(address: tuple[str, int], seconds: float) -> float:
    """Good answers a second to the crowd alone."""
    with Crowd(address, _CLIENTS, seed=random.randrange(1000), think=_PAUSE) as crowd:
        time.sleep(seconds)
    return crowd.ledger.count(200) / seconds


def _busy(pid: int, seconds: float) -> float:
    """Cores that the process tree uses."""

    before = _cpu_seconds(pid)
    time.sleep(seconds)
    return (_cpu_seconds(pid) - before) / seconds


def _cpu_seconds(pid: int) -> float:
    return sum(process.cpu_seconds for process in usage.by_process(pid).values())
