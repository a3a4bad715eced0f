"""What several engines together say of the load."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from service.engine.arena import Arena, Gauge, Geometry
from service.engine.readings import LoadSource, readings
from service.observability.readings import Readings
from tests.api.site import CARD

GEOMETRY = Geometry(slots=4, height=1, width=1, channels=3, results=1)
rates = st.floats(0.1, 1e4)


def source(name: str = "a", device: str = "cpu", **gauges: float) -> LoadSource:
    arena = Arena.create(GEOMETRY)
    for gauge, value in gauges.items():
        arena.gauges[Gauge[gauge]] = value
    return LoadSource(replace(CARD, name=name, device=device), arena)


def test_nothing_is_read_where_there_is_no_engine() -> None:
    assert readings([]) == Readings()


@given(st.lists(st.tuples(rates, rates), min_size=1, max_size=4))
def test_engines_of_one_model_are_one_larger_engine(found: list[tuple[float, float]]) -> None:
    sources = [source(ARRIVALS=arrivals, CAPACITY=capacity) for arrivals, capacity in found]
    seen = readings(sources)
    expected = sum(arrivals for arrivals, _ in found) / sum(capacity for _, capacity in found)
    assert abs(seen.saturation - expected) <= 1e-6 * expected
    alone = readings([source(ARRIVALS=sum(a for a, _ in found), CAPACITY=sum(c for _, c in found))])
    assert abs(seen.saturation - alone.saturation) <= 1e-6 * expected


def test_one_engine_says_what_it_says_alone() -> None:
    one = source(ARRIVALS=30, CAPACITY=20, DECODE_CAPACITY=10, DECODE_BUSY=0.5, QUEUE_DEPTH=3, BUSY_RATIO=0.4)
    one.arena.acquire(1)
    seen = readings([one])
    assert (seen.saturation, seen.queue_depth, seen.in_flight, seen.busy_ratio) == (3.0, 3.0, 1.0, 0.4)
    assert readings([source(DECODE_BUSY=0.7)]).saturation == 0.7  # full though nothing arrives


def test_a_standby_and_a_version_that_is_kept_count_for_what_they_hold_alone() -> None:
    busy = source(ARRIVALS=5, CAPACITY=10, BUSY_RATIO=0.8, QUEUE_DEPTH=1)
    idle = source("old", CAPACITY=10, QUEUE_DEPTH=2)._replace(asked=False)
    idle.arena.acquire(1)
    seen = readings([busy, idle])
    assert (seen.saturation, seen.busy_ratio, seen.queue_depth, seen.in_flight) == (0.5, 0.8, 3.0, 1.0)


def test_the_model_that_is_nearest_to_its_limit_speaks_and_a_device_s_memory_counts_once() -> None:
    seen = readings(
        [
            source("a", "cuda:0", ARRIVALS=1, CAPACITY=10, MEMORY_USED=5, MEMORY_TOTAL=80),
            source("b", "cuda:0", ARRIVALS=9, CAPACITY=10, MEMORY_USED=5, MEMORY_TOTAL=80),
            source("a", "cuda:1", ARRIVALS=1, CAPACITY=10, MEMORY_USED=7, MEMORY_TOTAL=80),
        ]
    )
    assert seen.saturation == 0.9
    assert (seen.memory_used, seen.memory_total) == (12.0, 160.0)
