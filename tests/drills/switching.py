"""Another model again and again under load; and two engines behind one port."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from threading import Thread
from typing import Any

import httpx

from benchmarks.processes import memory_mib
from service.host import usage
from tests.crew import Crew
from tests.drills.crowd import Crowd, address_of, options
from tests.drills.ending import PACE, _held
from tests.drills.hostile import BROKEN, MISSING
from tests.drills.report import Report, spread
from tests.server import Server

#: Seconds within which whatever has to happen happens.
_PATIENCE = 120.0
#: MiB that the memory of a process tree may grow by: allocators and counters settle.
_FLAT = 16.0
#: An engine inherits some from the supervisor, by the parts that run when it is forked.
_FILES = 4
_CLIENTS = {"good": 6, "kept": 3, "batch": 1}
#: One load in so many is followed by one of weights that are no good; by one whose engine is killed meanwhile.
_BAD, _KILLED = 5, 7


class Counters(Crew):
    """Scrapes all the time, and remembers every counter that has ever been lower than before."""

    def __init__(self, server: Server) -> None:
        self.fell: set[str] = set()
        self.scrapes = 0
        self._server = server
        self._last: dict[str, float] = {}
        super().__init__(self._watch)

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            seen = {
                name: value
                for name, value in self._server.metrics().items()
                if name.partition("{")[0].endswith(("_total", "_count", "_sum", "_bucket"))
            }
            self.scrapes += 1
            # A process that ends takes the CPU time with it that is counted by kind of process.
            self.fell |= {
                name
                for name, value in self._last.items()
                if seen.get(name, 0.0) < value and "process_cpu" not in name
            }
            self._last = seen


def switches(times: int) -> Report:
    """Loads under load: good ones, ones that fail, engines that are killed in the middle of one, and rollbacks."""
    report = Report(
        "switch", f"{times} switches under load, and between them loads that fail, kills and rollbacks"
    )
    settings = options(
        **PACE,
        LOAD_MS=100,
        frontends=2,
        queue_capacity=256,
        model_control="open",
        weights="random:0",
        keep_previous_ms=200,
    )
    took: list[float] = []
    statuses: Counter[str] = Counter()
    rolled_back = 0
    with Server(**settings) as server:
        # What the first requests and the first switch bring into memory stays there, whatever follows.
        with Counters(server), Crowd(address_of(server.url), _CLIENTS):
            for _ in range(3):
                time.sleep(1.0)
                _order(server, weights="random:0")
        _settle(server)
        before, files = memory_mib(server.pid), _files(server)
        with Counters(server) as counters, Crowd(address_of(server.url), _CLIENTS) as crowd:
            time.sleep(1.0)
            for number in range(1, times + 1):
                if not number % _BAD:
                    seed = BROKEN if number % 2 else MISSING
                    statuses[f"no good {_order(server, weights=f'random:{seed}').status_code}"] += 1
                if not number % _KILLED:
                    statuses[f"killed {_killed_in_the_middle(server).status_code}"] += 1
                answer = _order(server, weights=f"random:{number}")
                statuses[f"good {answer.status_code}"] += 1
                if answer.status_code == 200:
                    took.append(answer.json()["seconds"])
                if not number % 10:  # back and forth: at once, since the old one is kept for a moment
                    for _ in range(2):
                        rolled_back += _order(server, "rollback").status_code == 200
            time.sleep(1.0)
        held = _held(server)
        _settle(server)
        after, files_after = memory_mib(server.pid), _files(server)
        health = httpx.get(server.url + "/healthz", timeout=_PATIENCE).json()
        code = server.terminate()
    ledger = crowd.ledger
    report.promise("every good load is a switch", statuses["good 200"] == times, dict(statuses))
    report.promise(
        "every other says why",
        set(statuses) <= {"good 200", "no good 422", "killed 422"},
        dict(statuses),
    )
    report.promise(
        "nothing is lost", not ledger.lost, f"{len(ledger.lost)} lost of {ledger.answered} answered"
    )
    report.promise("nobody gets 503", ledger.count(503) == 0, f"{ledger.count(503)} of {ledger.answered}")
    report.promise(
        "each answer is of the weights that it names",
        not ledger.wrong,
        "; ".join(ledger.wrong[:2]) or "0 wrong",
    )
    report.promise("all slots are free again", held == 0, f"{held} held")
    report.promise(
        "counters never fall",
        not counters.fell,
        sorted(counters.fell)[:3] or f"in {counters.scrapes} scrapes",
    )
    report.promise(
        f"memory is back to where it was (within {_FLAT:.0f} MiB)",
        after - before <= _FLAT,
        f"{after - before:+.1f} MiB, of {before:.0f}",
    )
    report.promise(
        f"so are open files (within {_FILES})",
        files_after - files <= _FILES,
        f"{files_after - files:+d}, of {files}",
    )
    report.promise("no engine was started again", health["restarts"] == 0, health["restarts"])
    report.promise("exit code 0", code == 0, code)
    report.figure("rollbacks that still found the version before", f"{rolled_back} of {times // 10 * 2}")
    report.figure("seconds from the order to the switch", spread(took, 1, 2))
    report.figure("ms of good requests", spread(ledger.latencies))
    return report


def two_engines(kills: int) -> Report:
    """One of two engines is killed, again and again, while clients ask both."""
    report = Report(
        "two engines", f"{kills} kills of one of two engines under load, after a load on one and on two"
    )
    capacity = {count: _goodput("cpu" if count == 1 else "cpu,cpu") for count in (1, 2)}
    not_ready = 0
    shares: list[float] = []
    with Server(**options(**PACE, frontends=2, device="cpu,cpu", queue_capacity=128)) as server:
        _until(lambda: _serving(server) == 2)
        with Crowd(address_of(server.url), {"good": 12, "kept": 4}) as crowd:
            time.sleep(1.0)
            for number in range(kills):
                victim = _engines(server)[number % 2]
                os.kill(victim, signal.SIGKILL)
                asked = crowd.ledger.count(200)
                ends = time.monotonic() + 0.5
                while time.monotonic() < ends:
                    not_ready += httpx.get(server.url + "/readyz", timeout=_PATIENCE).status_code != 200
                shares.append((crowd.ledger.count(200) - asked) / 0.5)
                _until(lambda: _serving(server) == 2)
                time.sleep(0.5)
        held = _held(server)
        code = server.terminate()
    ledger = crowd.ledger
    times = capacity[2] / capacity[1]
    report.promise(
        "two engines do at least 1.9 times as much as one",
        times >= 1.9,
        f"{times:.2f} times {capacity[1]:.0f}/s",
    )
    report.promise("ready all the time", not_ready == 0, f"{not_ready} times not")
    report.promise("nothing is lost", not ledger.lost, f"{len(ledger.lost)} lost of {ledger.answered}")
    report.promise(
        "503 only for what was on the dead one",
        ledger.count(503) <= 16 * len(shares),
        f"{ledger.count(503)} in {len(shares)} kills, with 16 clients",
    )
    report.promise("no wrong answer", not ledger.wrong, "; ".join(ledger.wrong[:2]) or 0)
    report.promise("all slots are free again", held == 0, f"{held} held")
    report.promise("exit code 0", code == 0, code)
    report.figure("images a second in the half second after a kill", spread(shares, 1))
    return report


def _goodput(device: str) -> float:
    """Answers a second of a closed loop that keeps every engine busy."""
    with Server(**options(**PACE, frontends=1, device=device)) as server:
        _until(lambda: _serving(server) == device.count("cpu"))
        with Crowd(address_of(server.url), {"kept": 24 * device.count("cpu")}) as crowd:
            time.sleep(1.5)
            before = crowd.ledger.count(200)
            time.sleep(4.0)
            return (crowd.ledger.count(200) - before) / 4.0


def _serving(server: Server) -> int:
    found = httpx.get(server.url + "/healthz", timeout=_PATIENCE).json()["engines"]
    return sum(engine["state"] == "serving" for engine in found if engine["role"] == "current")


def _order(server: Server, action: str = "load", **document: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/models/{action}", json=document, timeout=_PATIENCE)


def _killed_in_the_middle(server: Server) -> httpx.Response:
    """A load whose engine is killed while it loads."""
    before, answers = set(_engines(server)), list[httpx.Response]()
    thread = Thread(target=lambda: answers.append(_order(server, weights="random:7")))
    thread.start()
    _until(lambda: bool(set(_engines(server)) - before) or bool(answers))
    for pid in set(_engines(server)) - before:
        os.kill(pid, signal.SIGKILL)
    thread.join(_PATIENCE)
    return answers[0]


def _engines(server: Server) -> list[int]:
    """Process ids, the oldest first."""
    found = server.children()
    return sorted(
        pid for pid in usage.children(server.pid) if pid not in found.values() or pid == found.get("engine")
    )


def _settle(server: Server) -> None:
    """Until only one engine is left."""
    _until(lambda: len(httpx.get(server.url + "/healthz", timeout=_PATIENCE).json()["engines"]) == 1)
    _until(lambda: server.metrics()["imagenet_in_flight_requests"] == 0)


def _files(server: Server) -> int:
    """Open descriptors of the supervisor and of the engine: front-ends have their clients' connections."""
    return sum(
        int(value)
        for name, value in server.metrics().items()
        if name.startswith("imagenet_process_open_fds") and "frontend" not in name
    )


def _until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > give_up:
            raise AssertionError("it did not happen")
        time.sleep(0.01)
