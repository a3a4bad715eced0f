"""Refusing what cannot be met: the arithmetic, and what the client makes of it on a virtual clock."""

from __future__ import annotations

import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.arena import Arena, Gauge, Geometry
from service.engine.client import EngineClient
from service.engine.estimate import QueueState, ServiceRates, seconds_until_answered
from service.errors import Overloaded
from service.shared.transport import Link, socket_pair
from tests.fakes import VirtualClock
from tests.loops import on_a_loop

#: Batches of 4 in 0.4 s; an image decodes in 0.1 s in one of two threads.
PACE = ServiceRates(seconds=0.4, capacity=10.0, max_batch_size=4, decode=0.1, threads=2)
BACKLOG = QueueState(images=12, running=4, running_for=0.1, decoding=0)

paces = st.builds(
    ServiceRates,
    st.floats(0, 10),
    st.floats(0, 1e4),
    st.integers(1, 64),
    st.floats(0, 1),
    st.integers(0, 16),
)
backlogs = st.builds(
    QueueState, st.integers(0, 300), st.integers(0, 64), st.floats(0, 100), st.integers(0, 300)
)


def test_what_is_ahead_runs_first() -> None:
    # 0.3 s are left of the batch that runs, then two full ones, then the one that it is part of.
    assert seconds_until_answered(PACE, BACKLOG) == pytest.approx(0.3 + 0.8 + 0.4)


def test_a_batch_that_is_not_full_has_room_for_one_more() -> None:
    assert seconds_until_answered(PACE, BACKLOG._replace(images=7)) == pytest.approx(0.3 + 0.4)


def test_decoding_counts_where_it_is_slower() -> None:
    assert seconds_until_answered(PACE, BACKLOG._replace(decoding=99)) == pytest.approx(5.0 + 0.4)


@given(st.integers(1, 4), st.floats(0, 1))
def test_whoever_is_due_before_the_queue_waits_for_the_running_batch_alone(
    images: int, elapsed: float
) -> None:
    pace = PACE._replace(max_batch_size=1)
    backlog = QueueState(images, running=4, running_for=elapsed, decoding=0)
    left = max(0.0, 0.4 - elapsed)
    assert seconds_until_answered(pace, backlog) == pytest.approx(max(left, 0.1) + 0.4)


@given(paces, backlogs)
def test_nothing_is_refused_when_idle_or_before_anything_was_measured(
    pace: ServiceRates, backlog: QueueState
) -> None:
    assert seconds_until_answered(pace, backlog._replace(images=0)) == 0
    assert seconds_until_answered(pace._replace(seconds=0.0), backlog) == 0
    assert seconds_until_answered(pace._replace(capacity=0.0), backlog) == 0


@given(paces, backlogs, st.integers(0, 100))
def test_more_ahead_is_never_a_shorter_wait(pace: ServiceRates, backlog: QueueState, more: int) -> None:
    if not backlog.images:
        return
    longer = backlog._replace(images=backlog.images + more)
    assert 0 <= seconds_until_answered(pace, backlog) <= seconds_until_answered(pace, longer)


@on_a_loop
async def test_those_who_are_refused_together_are_not_told_to_return_together() -> None:
    arena = Arena.create(Geometry(4, 2, 2, 3, results=1))
    ours, theirs = socket_pair()
    client = EngineClient(VirtualClock())
    client.attach(Arena(os.dup(arena.descriptor), arena.geometry), Link(ours), 1)
    taken = [client.acquire() for _ in range(4)]
    for capacity, shortest in (
        (1.0, 4.0),
        (0.01, 60.0),
        (100.0, 1.0),
    ):  # four images; never past a minute, nor at once
        arena.gauges[Gauge.CAPACITY] = capacity
        waits = []
        for _ in range(200):
            with pytest.raises(Overloaded) as refused:
                client.check_capacity()
            waits.append(refused.value.retry_after)
        assert shortest <= min(waits) < shortest * 1.05
        assert shortest * 1.2 < max(waits) <= shortest * 1.25
        assert len(set(waits)) > 100
    for slot in taken:
        with slot:
            pass
    client.detach()
    theirs.close()


@on_a_loop
async def test_the_client_refuses_whom_the_queue_would_make_late_and_counts_only_who_is_before_them() -> None:
    clock = VirtualClock()
    arena = Arena.create(Geometry(64, 2, 2, 3, results=1))
    ours, theirs = socket_pair()
    client = EngineClient(clock)
    client.attach(Arena(os.dup(arena.descriptor), arena.geometry), Link(ours), 1)
    soon, later = clock() + 2.0, clock() + 60.0
    waiting = [client.acquire(soon) for _ in range(20)]
    client.check_capacity(soon)  # nothing was measured yet

    # Five batches are ahead of whoever is due as late as they are: 2.4 s.
    arena.gauges[[Gauge.PASS, Gauge.CAPACITY, Gauge.MAX_BATCH_SIZE]] = 0.4, 10.0, 4
    with pytest.raises(Overloaded) as refused:
        client.check_capacity(soon)
    assert 1 <= refused.value.retry_after < 2
    with pytest.raises(Overloaded):
        client.acquire(soon)
    client.check_capacity(soon - 0.01)  # due before them, hence served before them
    client.check_capacity(later)
    client.check_capacity(clock() - 1)  # what is too late already is not refused for the load
    for slot in waiting:
        with slot:
            pass
    client.check_capacity(math.nextafter(clock(), math.inf))  # idle: whatever the deadline
    client.detach()
    theirs.close()
    arena.close()
