"""The rules of the batcher's docstring, on random schedules under a virtual clock."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from service.engine.batcher import AGEING, Batcher, Request
from tests.engine import histories
from tests.engine.histories import Counted

MOST, MOST_BULK = 4, 2


class Schedule(Counted):
    """Arrivals, cancellations, expiries and a device that is free now and then, against a plain model."""

    delay = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.batcher = Batcher(MOST, self.delay, MOST_BULK)
        self.waiting: dict[int, Request] = {}
        self.order: list[int] = []
        self.next_slot = 0

    @rule(patience=st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0, 60.0]), bulk=st.booleans())
    def arrive(self, patience: float, bulk: bool) -> None:
        request = Request(self.next_slot, self.now + patience, self.now, bulk)
        self.next_slot += 1
        self.batcher.add(request)
        self.waiting[request.slot] = request
        self.order.append(request.slot)

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(data=st.data())
    @precondition(lambda self: self.next_slot > 0)
    def cancel(self, data: st.DataObject) -> None:
        slot = data.draw(st.integers(0, self.next_slot - 1))
        assert self.batcher.cancel(slot) == (self.waiting.pop(slot, None) is not None)

    @rule()
    def expire(self) -> None:
        left = self.batcher.expire(self.now)
        due = sorted(
            (request for request in self.waiting.values() if request.deadline <= self.now),
            key=lambda request: (request.deadline, self.order.index(request.slot)),
        )
        assert sorted(left, key=lambda request: self.order.index(request.slot)) == sorted(
            due, key=lambda request: self.order.index(request.slot)
        )
        assert [request.deadline for request in left] == [request.deadline for request in due]
        for request in left:
            del self.waiting[request.slot]

    @rule()
    def device_is_free(self) -> None:
        batch = self.batcher.next_batch(self.now)
        live = sorted(
            (request for request in self.waiting.values() if request.deadline > self.now),
            key=lambda request: (request.deadline, self.order.index(request.slot)),
        )
        urgent = [request for request in live if not request.bulk or self.has_aged(request)]
        wanted, most = (urgent, MOST) if urgent else (live, MOST_BULK)
        assert batch == (wanted[:most] if self.should_run(wanted, most) else [])
        for request in batch:
            del self.waiting[request.slot]

    def has_aged(self, request: Request) -> bool:
        return self.now >= request.arrived + min(AGEING, (request.deadline - request.arrived) / 2)

    def should_run(self, live: list[Request], most: int) -> bool:
        if not live:
            return False
        oldest = min(request.arrived for request in live)
        return len(live) >= most or self.now >= oldest + self.delay

    @invariant()
    def never_sleeps_past_what_is_due(self) -> None:
        self.count()
        wake = self.batcher.next_deadline()
        live = [request for request in self.waiting.values() if request.deadline > self.now]
        if live:
            assert wake is not None
            assert wake <= min(request.deadline for request in live)
            if self.delay:
                assert wake <= min(request.arrived for request in live) + self.delay

    def teardown(self) -> None:
        """Everyone leaves exactly once: what the model still holds is what the batcher still gives."""
        self.now += 1_000
        assert {request.slot for request in self.batcher.expire(self.now)} == set(self.waiting)
        assert len(self.batcher) == 0
        assert self.batcher.next_deadline() is None


class PatientSchedule(Schedule):
    delay = 0.75


@pytest.mark.parametrize("schedule", [Schedule, PatientSchedule])
def test_random_schedules_keep_the_rules(schedule: type[Schedule]) -> None:
    assert histories.run(schedule, 6_000) >= 6_000


def test_a_slot_waits_only_once() -> None:
    batcher = Batcher(2)
    batcher.add(Request(1, 10.0, 0.0))
    with pytest.raises(ValueError, match="waits already"):
        batcher.add(Request(1, 10.0, 0.0))


def test_a_batch_holds_at_least_one() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Batcher(0)
    with pytest.raises(ValueError, match="at least 1"):
        Batcher(4, max_bulk_batch_size=0)


def test_nobody_waits_where_no_delay_is_asked_for() -> None:
    batcher = Batcher(MOST)
    request = Request(0, 200.0, 100.0)
    batcher.add(request)
    assert batcher.next_batch(100.0) == [request]


def test_a_full_batch_does_not_wait_for_the_delay() -> None:
    batcher = Batcher(2, max_queue_delay=1.0)
    batcher.add(Request(1, 10.0, 0.0))
    assert batcher.next_batch(0.5) == []
    assert batcher.next_deadline() == 1.0
    batcher.add(Request(2, 9.0, 0.5))
    assert [request.slot for request in batcher.next_batch(0.5)] == [2, 1]


def test_bulk_waits_for_the_others_and_not_for_ever() -> None:
    batcher = Batcher(1)
    batcher.add(Request(0, deadline=8.0, arrived=0.0, bulk=True))  # ages after half of that
    for now in (0.0, 1.0, 3.9):
        batcher.add(Request(1, now + 10.0, now))
        assert [request.slot for request in batcher.next_batch(now)] == [1]
    batcher.add(Request(1, 14.0, 4.0))
    assert [request.slot for request in batcher.next_batch(4.0)] == [0]
    batcher.add(Request(2, deadline=1000.0, arrived=4.0, bulk=True))
    assert [request.slot for request in batcher.next_batch(4.0 + AGEING)] == [1]
    assert [request.slot for request in batcher.next_batch(4.0 + AGEING)] == [2]
