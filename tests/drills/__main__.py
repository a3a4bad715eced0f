"""Live drills: real processes, real sockets, and a report of what was tried and what was lost.

    python -m tests.drills [--short] [--only overload deadlines ...]      (make drill)

Writes benchmarks/results/drills.md and .json. Ends with exit code 1 when a promise was not kept. The whole takes about
half an hour, ``--short`` two minutes. What is timed wants a machine with nothing else on it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

from benchmarks import report as published
from tests.drills import effort, ending, flips, loading, models, rollouts, standby, switching
from tests.drills.report import Report

#: By name: the drill in full and in short.
DRILLS: dict[str, tuple[Callable[[], Report], Callable[[], Report]]] = {
    "overload": (lambda: loading.overload(60), lambda: loading.overload(12)),
    "deadlines": (lambda: loading.deadlines(20), lambda: loading.deadlines(3)),
    "sigterm": (lambda: ending.sigterm(100), lambda: ending.sigterm(5)),
    "kills": (lambda: ending.kills(24, 24), lambda: ending.kills(3, 1)),
    "hang-ups": (lambda: ending.hang_ups(2000), lambda: ending.hang_ups(160)),
    "faults": (lambda: models.faults(10), lambda: models.faults(1)),
    "rollouts": (lambda: rollouts.rollouts(10_000), lambda: rollouts.rollouts(1_000)),
    "effort": (lambda: effort.effort(400, 60), lambda: effort.effort(40, 12)),
    "standby": (lambda: standby.standby(24), lambda: standby.standby(4)),
    "flips": (lambda: flips.flips(40), lambda: flips.flips(8)),
    "switch": (lambda: switching.switches(50), lambda: switching.switches(8)),
    "engines": (lambda: switching.two_engines(8), lambda: switching.two_engines(2)),
    "histories": (lambda: models.random_histories(1_000_000), lambda: models.random_histories(20_000)),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=DRILLS, default=list(DRILLS))
    parser.add_argument(
        "--short", action="store_true", help="fewer times and seconds, to see that all of it works"
    )
    arguments = parser.parse_args()
    reports = []
    for name in arguments.only:
        began = time.monotonic()
        reports.append(DRILLS[name][arguments.short]())
        print(
            f"{name}: {'kept' if reports[-1].kept else 'NOT KEPT'}, {time.monotonic() - began:.0f} s",
            file=sys.stderr,
        )
        publish(reports)
    return 0 if all(report.kept for report in reports) else 1


def publish(reports: list[Report]) -> None:
    """What there is, should a later drill take too long. A drill that is left out keeps its last report."""
    today = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    tried, rows = _others({report.name for report in reports})
    tried += [{"drill": report.name, "tried": report.tried, "when": today} for report in reports]
    rows += [row for report in reports for row in report.rows]
    notes = [
        "The service is the real one, in its own processes; its model sleeps, answers a function of the pixels, "
        "and does what an image tells it to (tests/drills/hostile.py). Clients share the machine with it.",
        "A promise in brackets is a figure that nothing is promised of.",
    ]
    published.publish(
        "drills",
        "Drills: what was tried and what was lost",
        {"tried": tried, "seen": rows},
        notes,
        "tests.drills",
    )


def _others(now: set[str]) -> tuple[list[published.Row], list[published.Row]]:
    """The last report's tables, without the drills that ran ``now``."""
    path = published.RESULTS / "drills.json"
    tables = json.loads(path.read_text())["tables"] if path.exists() else {"tried": [], "seen": []}
    tried, seen = ([row for row in tables[name] if row["drill"] not in now] for name in ("tried", "seen"))
    return tried, seen


if __name__ == "__main__":
    sys.exit(main())
