"""Mixed traffic for as long as you like, with kills and hang-ups in between: what is left at the end.

    python -m tests.drills.soak [--seconds 1800]      (make soak, make soak DURATION=600)

Clients of every kind ask all the time: good images one by one and in batches, damaged ones, nonsense, very short
deadlines, models without numbers, hang-ups. A front-end is killed about every 20 seconds; every 130 the engine is
killed, hangs, or ends by itself (five young deaths in a row would end the service).

At the end: accepted = answered, nothing wrong, all slots free, memory flat. Writes benchmarks/results/soak.md, .json.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from collections import Counter

import numpy as np

from benchmarks import report as published
from tests.crew import Crew
from tests.drills import wire
from tests.drills.crowd import Crowd, address_of, options
from tests.drills.ending import PACE, _held, _until_served
from tests.drills.hostile import Trick, trick_image
from tests.drills.loading import Sampler
from tests.drills.report import Report, spread
from tests.server import Server

_CROWD = {"good": 6, "kept": 3, "batch": 1, "bad": 2, "short": 2, "trick": 1, "gone": 2}
#: Seconds between two kills of a front-end, on average, and of the engine, at least: above what makes a life long.
_FRONT_END_EVERY, _ENGINE_EVERY = 20.0, 130.0
#: Of a hung batch in this service, seconds.
_LIMIT = 3.0
#: MiB by which the last quarter's memory may exceed the second's: the first is growing up.
_FLAT = 16.0


class Trouble(Crew):
    """Kills things at random until told to stop."""

    def __init__(self, server: Server) -> None:
        self.done: Counter[str] = Counter()
        self.front_ends_killed: list[float] = []
        self._server = server
        super().__init__(self._kill_front_ends, self._end_engines)

    def _kill_front_ends(self) -> None:
        rng = random.Random(1)
        while not self._stop.wait(max(6.0, rng.expovariate(1 / _FRONT_END_EVERY))):
            pids = [pid for name, pid in self._server.children().items() if name != "engine"]
            os.kill(rng.choice(pids), signal.SIGKILL)
            self.front_ends_killed.append(time.monotonic())
            self.done["front-end killed"] += 1

    def _end_engines(self) -> None:
        ways = [self._kill_engine, self._hang, self._exit]
        number = 0
        while not self._stop.wait(_ENGINE_EVERY if number else _ENGINE_EVERY / 4):
            ways[number % len(ways)]()
            number += 1

    def _kill_engine(self) -> None:
        os.kill(self._server.children()["engine"], signal.SIGKILL)
        self.done["engine killed"] += 1

    def _hang(self) -> None:
        self._play(Trick.HANG, "model hung")

    def _exit(self) -> None:
        self._play(Trick.EXIT, "engine ended itself")

    def _play(self, trick: Trick, name: str) -> None:
        while not self._stop.is_set():  # it may be refused for the load
            if wire.Client(address_of(self._server.url)).ask(trick_image(trick)).status == 503:
                self.done[name] += 1
                return
            time.sleep(0.1)


def soak(seconds: float, think: float) -> Report:
    report = Report("soak", f"{seconds:.0f} s of mixed traffic from {sum(_CROWD.values())} clients")
    settings = options(**PACE, LIMIT_S=_LIMIT, frontends=3, queue_capacity=48, request_timeout_ms=5000)
    with Server(**settings) as server:
        address = address_of(server.url)
        with Sampler(server) as samples, Crowd(address, _CROWD, think=think) as crowd:
            with Trouble(server) as trouble:
                time.sleep(seconds)
            _until_served(address, time.monotonic())
        held = _held(server)
        metrics = server.metrics()
        code = server.terminate()
    ledger = crowd.ledger
    lost = ledger.lost_without_a_kill(trouble.front_ends_killed)
    accepted = ledger.asked - ledger.count("refused") - ledger.count("gone")
    broken = len(ledger.lost) - len(lost)
    refused = ledger.count("refused")
    report.promise(
        "accepted = answered",
        not lost,
        f"{accepted:,} accepted, {ledger.answered:,} answered, {broken} broke with their killed front-end, "
        f"{len(lost)} lost otherwise {dict(Counter(one.reason for one in lost)) or ''}",
    )
    report.promise("no connection refused", refused == 0, refused)
    report.promise("wrong = 0", not ledger.wrong, f"{len(ledger.wrong)} {ledger.wrong[:2] or ''}")
    report.promise("all slots free", held == 0, f"{held} held")
    quarter = max(1, len(samples.memory) // 4)
    second, last = (
        float(np.mean(part)) for part in (samples.memory[quarter : 2 * quarter], samples.memory[-quarter:])
    )
    report.promise(
        f"memory flat (within {_FLAT:.0f} MiB)",
        last - second <= _FLAT,
        f"{second:.1f} MiB in the second quarter, {last:.1f} in the last",
    )
    late = int(metrics["imagenet_late_work_total"])
    report.promise("no forward pass for expired work", late == 0, late)
    report.promise("exit code 0 at the end", code == 0, code)
    report.figure("what happened to it", dict(trouble.done))
    report.figure("requests by kind and status", dict(sorted(ledger.statuses.items())))
    report.figure("ms for a good image", spread(ledger.latencies))
    return report


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument(
        "--think", type=float, default=0.02, help="seconds that a client pauses between two requests"
    )
    arguments = parser.parse_args()
    report = soak(arguments.seconds, arguments.think)
    published.publish(
        "soak",
        f"Soak: {report.tried}",
        {"seen": report.rows},
        ["Clients share the machine with the service."],
        "tests.drills.soak",
    )
    return 0 if report.kept else 1


if __name__ == "__main__":
    sys.exit(main())
