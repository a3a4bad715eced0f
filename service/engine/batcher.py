"""The batching policy: which requests run together, and when. It decides and does nothing else.

No clock, no thread, no socket, no tensor: time comes in as an argument (seconds, any monotonic
clock), decisions go out as values. `EngineCore` acts on them.

The rules, each of which tests/engine/test_batcher.py proves on random schedules:

1. Every request leaves exactly once: in a batch, as expired, or as cancelled.
2. A batch never holds more than ``max_batch_size`` requests, and never one past its deadline.
3. The earliest deadline goes first; of equal deadlines, the earliest arrival.
4. With ``max_queue_delay`` 0, nobody waits while the device is free. With more, a partial batch
   waits until its oldest request has waited that long, a full one not at all.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Request:
    """One image that waits: its slot, and when it came and expires, in seconds."""

    slot: int
    deadline: float
    arrived: float


class Batcher:
    """Requests in, batches out. The device's owner calls `next_batch` whenever the device is free."""

    def __init__(self, max_batch_size: int, max_queue_delay: float = 0.0) -> None:
        if max_batch_size < 1:
            raise ValueError("max_batch_size must be at least 1")
        self.max_batch_size = max_batch_size
        self.max_queue_delay = max_queue_delay
        # In order of arrival, and the truth about who waits; the heap may still name some who left.
        self._waiting: dict[int, Request] = {}
        self._by_deadline: list[tuple[float, int, Request]] = []
        self._late: list[Request] = []
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __repr__(self) -> str:
        return f"<Batcher {len(self)} waiting, {self.max_batch_size} a batch>"

    def add(self, request: Request) -> None:
        """Lets ``request`` wait. Raises ValueError when its slot waits already."""
        if request.slot in self._waiting or any(late.slot == request.slot for late in self._late):
            raise ValueError(f"slot {request.slot} waits already")
        self._arrivals += 1
        self._waiting[request.slot] = request
        heapq.heappush(self._by_deadline, (request.deadline, self._arrivals, request))

    def cancel(self, slot: int) -> bool:
        """Lets ``slot`` leave without running; False when it does not wait here."""
        if self._waiting.pop(slot, None) is not None:
            return True
        late = [request for request in self._late if request.slot != slot]
        found = len(late) < len(self._late)
        self._late = late
        return found

    def expire(self, now: float) -> list[Request]:
        """Lets everyone leave whose deadline has come, earliest first."""
        self._set_late_aside(now)
        late, self._late = self._late, []
        return late

    def next_batch(self, now: float, room: int | None = None) -> list[Request]:
        """What a free device should run now, earliest deadline first; empty when it should wait.

        With ``room`` not more than that. Whoever is late is never part of it, and leaves with the next `expire`.
        """
        self._set_late_aside(now)
        if not self._due(now):
            return []
        largest = self.max_batch_size if room is None else min(room, self.max_batch_size)
        return [self._pop() for _ in range(min(len(self), largest))]

    def next_deadline(self) -> float | None:
        """When to look again though nothing arrives: the first expiry, or the end of the queue delay."""
        first = self._first()
        if first is None:
            return None
        if self.max_queue_delay == 0:
            return first.deadline
        return min(first.deadline, self._oldest() + self.max_queue_delay)

    def _set_late_aside(self, now: float) -> None:
        while (first := self._first()) is not None and first.deadline <= now:
            self._late.append(self._pop())

    def _due(self, now: float) -> bool:
        if not self._waiting:
            return False
        full = len(self) >= self.max_batch_size
        return full or now >= self._oldest() + self.max_queue_delay

    def _oldest(self) -> float:
        return next(iter(self._waiting.values())).arrived

    def _first(self) -> Request | None:
        """The waiting request of the earliest deadline, without those that left before it."""
        while self._by_deadline:
            request = self._by_deadline[0][2]
            if self._waiting.get(request.slot) is request:
                return request
            heapq.heappop(self._by_deadline)
        return None

    def _pop(self) -> Request:
        request = self._first()
        assert request is not None
        heapq.heappop(self._by_deadline)
        del self._waiting[request.slot]
        return request
