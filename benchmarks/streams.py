"""Batches or streams on a processor: the latency of each, simulated from two measured times.

    python -m benchmarks.streams [--one-ms 21.9] [--two-ms 38.4] [--rate 41.6]

One image on both cores takes ``one-ms``, two side by side ``two-ms``; a batch of n is made of such pairs. Arrivals
are a Poisson process; a free processor takes what waits, at most the limit. With streams, one image alone has both
cores, and otherwise each core takes the next image when it is free (`service.engine.core`). Decoding is left out.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from benchmarks import report

_LIMITS = (1, 2, 4, 8, 16, 1000)


class Passed(NamedTuple):
    """The times of one image in milliseconds: from arrival to the end of its pass, and of the pass itself."""

    latency: float
    own: float


def batches(arrivals: list[float], one: float, two: float, limit: int) -> Iterator[Passed]:
    """Runs all waiting images together, up to ``limit``; the next batch begins when that has ended."""
    now, first = 0.0, 0
    while first < len(arrivals):
        now = max(now, arrivals[first])
        last = first
        while last < len(arrivals) and arrivals[last] <= now and last - first < limit:
            last += 1
        pairs, odd = divmod(last - first, 2)
        took = pairs * two + odd * one
        now += took
        yield from (Passed(now - came, took) for came in arrivals[first:last])
        first = last


def streams(arrivals: list[float], one: float, two: float) -> Iterator[Passed]:
    """Runs two streams; an image that finds both free and no other waiting has the whole processor."""
    free = [0.0, 0.0]
    for number, came in enumerate(arrivals):
        now = max(came, min(free))
        company = number + 1 < len(arrivals) and arrivals[number + 1] <= now
        if max(free) <= now and not company:
            free, took = [now + one, now + one], one
        else:
            free[free.index(min(free))], took = now + two, two
        yield Passed(now + took - came, took)


def row(name: str, passed: Iterator[Passed]) -> dict[str, object]:
    """Returns one line of the table."""
    latency, own = np.array(list(passed)).T
    found = np.percentile(latency, (50, 90, 99))
    values = [latency.mean(), *found]
    names = ("mean ms", "p50 ms", "p90 ms", "p99 ms")
    slowest = latency >= found[-1]
    return {
        "policy": name,
        **{key: round(float(value), 1) for key, value in zip(names, values, strict=True)},
        "p99 / its pass": round(float(found[-1] / own[slowest].mean()), 2),
        "latency / own pass, p99": round(float(np.percentile(latency / own, 99)), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--one-ms", type=float, default=21.9)
    parser.add_argument("--two-ms", type=float, default=38.4)
    parser.add_argument("--rate", type=float, default=41.6, help="arrivals a second")
    parser.add_argument("--images", type=int, default=60_000)
    given = parser.parse_args()
    chance = random.Random(1)
    arrivals = list(accumulate(1000 * chance.expovariate(given.rate) for _ in range(given.images)))
    rows = [
        row(f"batches of up to {limit}", batches(arrivals, given.one_ms, given.two_ms, limit))
        for limit in _LIMITS
    ]
    rows.append(row("streams", streams(arrivals, given.one_ms, given.two_ms)))
    report.publish("streams", "Batches or streams, simulated", {"latency": rows})


if __name__ == "__main__":
    main()
