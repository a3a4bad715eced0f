"""Models that answer nonsense, raise, hang or end their process; and random histories on a virtual clock."""

from __future__ import annotations

import time

from tests.drills import wire
from tests.drills.crowd import Crowd, address_of, options
from tests.drills.ending import _held, _until_served
from tests.drills.hostile import Trick, trick_image
from tests.drills.report import Report, spread
from tests.engine import histories
from tests.engine.fleet import Fleet
from tests.engine.machine import Service
from tests.engine.test_batcher import PatientSchedule, Schedule
from tests.server import Server

#: What the client of each trick is told.
_TOLD = {
    Trick.NAN: (500, "internal"),
    Trick.INFINITY: (500, "internal"),
    Trick.RAISE: (500, "internal"),
    Trick.MEMORY: (500, "internal"),
    Trick.HANG: (503, "engine_failed"),
    Trick.EXIT: (503, "engine_failed"),
}
#: Of hung batches in this drill, seconds; the service's own is 30 and more.
_LIMIT = 2.0


def faults(times: int) -> Report:
    """Every fault, again and again, beside clients whose images are good."""
    report = Report(
        "model faults",
        f"each of {len(_TOLD)} faults {times} times beside 4 clients; hung after {_LIMIT:.0f} s",
    )
    again: dict[Trick, list[float]] = {trick: [] for trick in _TOLD}
    told: list[str] = []
    wrong: list[str] = []
    lost = answered = held = 0
    for number in range(times):
        with Server(**options(FIXED_MS=10, LIMIT_S=_LIMIT, frontends=2)) as server:
            address = address_of(server.url)
            with Crowd(address, {"good": 4}, seed=number) as crowd:
                for trick, expected in _TOLD.items():
                    time.sleep(0.1)
                    began = time.monotonic()
                    outcome = wire.Client(address).ask(trick_image(trick))
                    code = (outcome.document or {}).get("code")
                    if (outcome.status, code) != expected:
                        told.append(f"{trick.name}: {outcome.status} {code}")
                    again[trick].append(_until_served(address, began + outcome.seconds))
            ledger = crowd.ledger
            # Who shared a batch with a model that raised is told so; a wrong answer is another matter.
            wrong += [text for text in ledger.wrong if "500" not in text]
            lost += len(ledger.lost)
            answered += ledger.answered
            held += _held(server)
    report.promise("each is told what happened", not told, "; ".join(told) or "all as documented")
    report.promise(
        "the others are answered, and rightly",
        not wrong and not lost,
        f"{answered} answered, {lost} lost, {len(wrong)} wrong {wrong[:2] or ''}",
    )
    report.promise("all slots are free again", held == 0, f"{held} held")
    for trick, seconds in again.items():
        report.promise(f"serves again after {trick.name}", max(seconds) < 60, f"s: {spread(seconds, 1, 2)}")
    return report


def random_histories(steps: int) -> Report:
    """Clients, arena, core and batcher on a virtual clock."""
    report = Report("random histories", f"{steps:,} steps of state machines on a virtual clock")
    for machine, share in ((Service, 0.4), (Fleet, 0.2), (Schedule, 0.2), (PatientSchedule, 0.2)):
        began = time.monotonic()
        done, broken = 0, ""
        try:
            done = histories.run(machine, int(share * steps), database=None)
        except Exception as error:
            broken = f"{type(error).__name__}: {error}"
        took = time.monotonic() - began
        report.promise(
            f"{machine.__name__} keeps every promise", not broken, broken or f"{done:,} steps in {took:.0f} s"
        )
    return report
