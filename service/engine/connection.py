"""One engine, as a front-end sees it: the arena that they share, the link, and which slots the engine has.

What becomes of a slot, seen from here:

    take ──▶ ours ──fill──▶ ours, a decoder writes ──submit──▶ the engine's ──reply──▶ ours ──leave──▶ free

Whoever leaves early (hang-up, deadline, error) owes nothing: the slot comes free at once when it is ours, when the
decoder has written its last byte, or when the engine has handed it back after it was told of the cancellation. Never
earlier, so nobody writes into another's image.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable

from service.engine.arena import FILE, Arena, Decoding, Gauge, Outcome
from service.engine.choice import Offer
from service.engine.estimate import QueueState, ServiceRates, seconds_until_answered
from service.errors import EngineFailed
from service.shared.outputs import OutputRequest
from service.shared.transport import Link
from service.shared.writing import FileWriting, Writing

#: One slot in so many is never a bulk request's: a queue full of them would refuse everybody else.
_RESERVED = 2
#: The weight of the newest image in what decoding one takes.
_NEWEST = 0.1


class Connection:
    """One engine, from `attach` to its death. Knows which slots it has, and who waits for them."""

    def __init__(
        self,
        arena: Arena,
        link: Link,
        number: int,
        cancelled: Callable[[], None],
        threads: int,
        standby: bool = False,
        model: Hashable = None,
    ) -> None:
        """``standby``: it is asked while no other engine of its model is there.

        Engines of equal ``model`` answer alike.
        """
        self.arena = arena
        self.model = model
        self.number = number
        self.standby = standby
        self.failed = False
        self.decoding = 0
        """Images that threads write, or are going to."""
        self._decode_seconds = 0.0
        self._threads = threads
        arena.decoding[number, Decoding.THREADS] = threads
        #: Slots that the engine has. None where nobody waits for the reply any more.
        self.submitted: dict[int, asyncio.Future[None] | None] = {}
        self._hung_up: set[int] = set()
        self._files: dict[int, FileWriting] = {}
        """Slots whose files the engine decodes."""
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._cancelled = cancelled

    def reserve(self, bulk: bool) -> int:
        """Slots that stay free for those who are not bulk."""
        return self.arena.geometry.slots // _RESERVED if bulk else 0

    def listen(self) -> None:
        """Hears the engine's replies from now on. Without, the caller has to see to it."""
        self._loop.add_reader(self._link.fileno(), self._receive_messages)

    def wait(self, ahead: int, now: float) -> float:
        """Seconds until an image would be answered that comes behind ``ahead`` others."""
        return seconds_until_answered(*self._state(ahead, now))

    def offer(self, bulk: bool, now: float) -> Offer:
        """What choosing between this engine and others goes by."""
        free = self.arena.free
        pace, backlog = self._state(self.arena.geometry.slots - free, now)
        return Offer(pace, backlog, free > self.reserve(bulk))

    def _state(self, ahead: int, now: float) -> tuple[ServiceRates, QueueState]:
        gauge = self.arena.gauges.item
        seconds, capacity, size = gauge(Gauge.PASS), gauge(Gauge.CAPACITY), gauge(Gauge.MAX_BATCH_SIZE)
        pace = ServiceRates(seconds, capacity, int(size), self._decode_seconds, self._threads)
        running_for = now - gauge(Gauge.BUSY_SINCE)
        return pace, QueueState(ahead, int(gauge(Gauge.RUNNING)), running_for, self.decoding)

    def decoded(self, seconds: float | None) -> None:
        """Takes note of an image that a thread was occupied with for ``seconds``; None for one given up before."""
        self.decoding -= 1
        if seconds is None:
            return
        self._decode_seconds += (_NEWEST if self._decode_seconds else 1.0) * (seconds - self._decode_seconds)
        mine = self.arena.decoding[self.number]
        mine[Decoding.IMAGES] += 1
        mine[Decoding.SECONDS] += seconds

    def takes_files(self) -> bool:
        """Whether an image would be decoded sooner in the engine than here."""
        busy = 0 < self._threads <= self.decoding
        return busy and not self.failed and self.arena.gauges.item(Gauge.FILES) > len(self._files)

    def send_file(self, slot: int, length: int, otherwise: Callable[[], Writing]) -> Writing:
        """The engine decodes the file in ``slot``; what it will not, ``otherwise`` does."""
        self.arena.record_file(slot, length)
        writing = self._files[slot] = FileWriting(self._loop, otherwise)
        self._send(slot + FILE)
        return writing

    def submit(self, slot: int, wanted: OutputRequest, now: float, deadline: float) -> asyncio.Future[None]:
        if self.failed:
            raise EngineFailed("the engine failed while it was needed")
        self.arena.record_submission(slot, deadline, now, wanted)
        reply: asyncio.Future[None] = self._loop.create_future()
        self.submitted[slot] = reply
        self._send(slot)
        return reply

    def leave(self, slot: int, writing: Writing | None, hung_up: bool) -> None:
        """The owner wants no more of ``slot``: it comes free now, after its thread, or after the engine."""
        if slot not in self.submitted:
            self._count(hung_up)
            if writing is None:
                self.arena.release(slot)
            else:
                writing.afterwards(lambda: self.arena.release(slot))
        elif not self.failed:
            self.submitted[slot] = None
            if hung_up:
                self._hung_up.add(slot)
            self._send(~slot)

    def _count(self, hung_up: bool) -> None:
        if hung_up:
            self._cancelled()

    def leave_engine(self) -> None:
        """Lets go of an engine that may go on, and takes back what was held here: nobody may write there any more."""
        for writing in self._files.values():
            writing.fail(EngineFailed("the engine was left while it decoded this image"))
        self._files.clear()
        self.fail()

    def fail(self) -> None:
        """The engine has gone, and its arena with it: whoever waits is told, nothing is released."""
        if self.failed:
            return
        self.failed = True
        self._loop.remove_reader(self._link.fileno())
        self._loop.remove_writer(self._link.fileno())
        self._link.close()
        self.arena.close()
        for reply in self.submitted.values():
            if reply is not None and not reply.done():
                reply.set_exception(EngineFailed("the engine failed while it held this request"))
        for writing in self._files.values():
            writing.give_back()

    def _receive_messages(self) -> None:
        numbers = self._link.receive()
        if numbers is None:
            self.fail()
            return
        for slot in numbers:
            if slot >= FILE:
                writing = self._files.pop(slot - FILE)
                writing.reply(self.arena.record(slot - FILE).outcome == Outcome.OK)
                continue
            reply = self.submitted.pop(slot)
            if reply is None:
                self._count(slot in self._hung_up and self.arena.record(slot).outcome == Outcome.CANCELLED)
                self._hung_up.discard(slot)
                self.arena.release(slot)
            elif not reply.done():
                reply.set_result(None)

    def _send(self, number: int) -> None:
        self._link.send((number,))
        if self._link.backlog:
            self._loop.add_writer(self._link.fileno(), self._flush)

    def _flush(self) -> None:
        self._link.flush()
        if not self._link.backlog:
            self._loop.remove_writer(self._link.fileno())
