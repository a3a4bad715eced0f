"""The batching policy: the requests that run together, and the time at which they run. Pure decisions.

It has no clock, thread, socket or tensor. Times are arguments (seconds of any monotonic clock), decisions are return
values. `EngineCore` acts on them.

The rules, each of which tests/engine/test_batcher.py proves on random schedules:

1. Every request leaves exactly once: in a batch, as expired, or as cancelled.
2. A batch never holds more than ``max_batch_size`` requests, and never one past its deadline.
3. The earliest deadline goes first; of equal deadlines, the earliest arrival.
4. With ``max_queue_delay`` 0, no request waits while the device is free. With more, a partial batch
   waits until its oldest request has waited that long; a full batch does not wait.
5. Bulk requests run only while no other request waits, in batches of their own of at most
   ``max_bulk_batch_size``. Rule 3 holds among them.
6. No request starves: a bulk request that has waited for `AGEING` seconds, or for half of its time to
   the deadline, becomes an ordinary one.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

#: Seconds after which a bulk request is treated as any other.
AGEING = 5.0


@dataclass(frozen=True, slots=True)
class Request:
    """A waiting image: its slot, its deadline and its arrival, in seconds."""

    slot: int
    deadline: float
    arrived: float
    bulk: bool = False

    @property
    def ages_at(self) -> float:
        """The time at which a bulk request becomes an ordinary one."""
        return self.arrived + min(AGEING, max(0.0, self.deadline - self.arrived) / 2)


class _Queue:
    """Requests of one class, ordered by deadline, then by arrival."""

    def __init__(self) -> None:
        # The waiting requests by slot, in the order of arrival. The heap may still hold requests that have left.
        self.waiting: dict[int, Request] = {}
        self._by_deadline: list[tuple[float, int, Request]] = []

    def __len__(self) -> int:
        return len(self.waiting)

    def add(self, request: Request, arrival: int) -> None:
        self.waiting[request.slot] = request
        heapq.heappush(self._by_deadline, (request.deadline, arrival, request))

    def first(self) -> Request | None:
        """The waiting request with the earliest deadline. Drops requests that have left from the heap."""
        while self._by_deadline:
            request = self._by_deadline[0][2]
            if self.waiting.get(request.slot) is request:
                return request
            heapq.heappop(self._by_deadline)
        return None

    def pop(self) -> Request:
        request = self.first()
        assert request is not None
        heapq.heappop(self._by_deadline)
        del self.waiting[request.slot]
        return request

    def oldest(self) -> float:
        """The arrival of the request that has waited longest."""
        return min(request.arrived for request in self.waiting.values())


class Batcher:
    """The queue of one engine. The device's owner calls `next_batch` whenever the device is free."""

    def __init__(
        self, max_batch_size: int, max_queue_delay: float = 0.0, max_bulk_batch_size: int | None = None
    ) -> None:
        """``max_queue_delay`` is in seconds. ``max_bulk_batch_size`` None means ``max_batch_size``.

        Raises `ValueError` for a size below 1.
        """
        if max_batch_size < 1 or (max_bulk_batch_size is not None and max_bulk_batch_size < 1):
            raise ValueError("a batch's size must be at least 1")
        self.max_batch_size = max_batch_size
        self.max_queue_delay = max_queue_delay
        self.max_bulk_batch_size = min(max_bulk_batch_size or max_batch_size, max_batch_size)
        self._queue, self._bulk = _Queue(), _Queue()
        #: A heap of bulk requests: (time of ageing, number of arrival, request). Some may have left.
        self._ageing: list[tuple[float, int, Request]] = []
        self._late: list[Request] = []
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._queue) + len(self._bulk)

    def __repr__(self) -> str:
        return f"<Batcher {len(self)} waiting, {self.max_batch_size} a batch>"

    def add(self, request: Request) -> None:
        """Queues ``request``. Raises `ValueError` if its slot waits already."""
        slot = request.slot
        known = slot in self._queue.waiting or slot in self._bulk.waiting
        if known or any(late.slot == slot for late in self._late):
            raise ValueError(f"slot {slot} waits already")
        self._arrivals += 1
        if request.bulk:
            self._bulk.add(request, self._arrivals)
            heapq.heappush(self._ageing, (request.ages_at, self._arrivals, request))
        else:
            self._queue.add(request, self._arrivals)

    def cancel(self, slot: int) -> bool:
        """Removes ``slot`` from the queue; False if it does not wait."""
        for queue in (self._queue, self._bulk):
            if queue.waiting.pop(slot, None) is not None:
                return True
        late = [request for request in self._late if request.slot != slot]
        found = len(late) < len(self._late)
        self._late = late
        return found

    def expire(self, now: float) -> list[Request]:
        """Removes and returns all requests whose deadline has come, the earliest first."""
        self._set_late_aside(now)
        late, self._late = self._late, []
        return sorted(late, key=lambda request: request.deadline)

    def next_batch(self, now: float, room: int | None = None) -> list[Request]:
        """Removes and returns the requests that a free device should run now, the earliest deadline first.

        Empty if the device should wait. ``room`` is a further limit on their number. Expired requests are left to the
        next `expire`.
        """
        self._age(now)
        self._set_late_aside(now)
        queue, largest = self._queue, self.max_batch_size
        if not queue:
            queue, largest = self._bulk, self.max_bulk_batch_size
        if not self._due(queue, largest, now):
            return []
        largest = largest if room is None else min(room, largest)
        return [queue.pop() for _ in range(min(len(queue), largest))]

    def next_deadline(self) -> float | None:
        """The time of the next decision if nothing arrives: the first expiry or the end of the queue delay."""
        firsts = [request for queue in (self._queue, self._bulk) if (request := queue.first()) is not None]
        if not firsts:
            return None
        earliest = min(request.deadline for request in firsts)
        if self.max_queue_delay == 0:
            return earliest
        oldest = min(queue.oldest() for queue in (self._queue, self._bulk) if queue)
        return min(earliest, oldest + self.max_queue_delay)

    def _age(self, now: float) -> None:
        while self._ageing and self._ageing[0][0] <= now:
            _, arrival, request = heapq.heappop(self._ageing)
            if self._bulk.waiting.get(request.slot) is request:
                del self._bulk.waiting[request.slot]
                self._queue.add(request, arrival)

    def _set_late_aside(self, now: float) -> None:
        for queue in (self._queue, self._bulk):
            while (first := queue.first()) is not None and first.deadline <= now:
                self._late.append(queue.pop())

    def _due(self, queue: _Queue, largest: int, now: float) -> bool:
        if not queue:
            return False
        return len(queue) >= largest or now >= queue.oldest() + self.max_queue_delay
