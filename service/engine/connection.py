"""A front-end's connection to one engine: the shared arena, the link, and the slots that the engine holds.

The life of a slot, seen from the front-end:

    acquire ──▶ ours ──fill──▶ ours, a decoder writes ──submit──▶ the engine's ──reply──▶ ours ──leave──▶ free

A request may leave early (disconnect, deadline, error). Its slot becomes free at once if the front-end holds it, after
the decoder's last byte if one writes, or after the engine's reply if the engine holds it. Never earlier, so that no
process writes into another request's image.
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

#: One in so many slots is kept from bulk requests, which could otherwise fill the queue and block all others.
_RESERVED = 2
#: The weight of the newest image in the smoothed decode time.
_NEWEST = 0.1


class Connection:
    """The connection to one engine, from `EngineClient.attach` to the engine's end."""

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
        """``number`` is this front-end's in the arena; ``cancelled`` is called for each cancelled image.

        ``threads``, ``standby`` and ``model``: see `EngineClient`.
        """
        self.arena = arena
        self.model = model
        self.number = number
        self.standby = standby
        self.failed = False
        self.decoding = 0
        """The number of images that decoders write or have queued."""
        self._decode_seconds = 0.0
        self._threads = threads
        arena.decoding[number, Decoding.THREADS] = threads
        #: The slots that the engine holds, with the future of the reply; None if the request has left.
        self.submitted: dict[int, asyncio.Future[None] | None] = {}
        self._hung_up: set[int] = set()
        self._files: dict[int, FileWriting] = {}
        """The writes of slots whose files the engine decodes."""
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._cancelled = cancelled

    def reserve(self, bulk: bool) -> int:
        """The number of slots that must stay free when a request of this class takes one."""
        return self.arena.geometry.slots // _RESERVED if bulk else 0

    def listen(self) -> None:
        """Begins to receive the engine's replies on the event loop."""
        self._loop.add_reader(self._link.fileno(), self._receive_messages)

    def wait(self, ahead: int, now: float) -> float:
        """Seconds until the answer to an image that arrives behind ``ahead`` others."""
        return seconds_until_answered(*self._state(ahead, now))

    def offer(self, bulk: bool, now: float) -> Offer:
        """The engine's state for the choice between engines (`service.engine.choice`)."""
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
        """Records that a decoder was occupied with an image for ``seconds``; None if it was given up before."""
        self.decoding -= 1
        if seconds is None:
            return
        self._decode_seconds += (_NEWEST if self._decode_seconds else 1.0) * (seconds - self._decode_seconds)
        mine = self.arena.decoding[self.number]
        mine[Decoding.IMAGES] += 1
        mine[Decoding.SECONDS] += seconds

    def takes_files(self) -> bool:
        """True if the engine takes files and all decoders here are busy."""
        busy = 0 < self._threads <= self.decoding
        return busy and not self.failed and self.arena.gauges.item(Gauge.FILES) > len(self._files)

    def send_file(self, slot: int, length: int, otherwise: Callable[[], Writing]) -> Writing:
        """Lets the engine decode the file in ``slot``. If it refuses, ``otherwise`` begins a write here."""
        self.arena.record_file(slot, length)
        writing = self._files[slot] = FileWriting(self._loop, otherwise)
        self._send(slot + FILE)
        return writing

    def submit(self, slot: int, wanted: OutputRequest, now: float, deadline: float) -> asyncio.Future[None]:
        """Hands ``slot`` to the engine. The future ends with its reply, or raises `EngineFailed`."""
        if self.failed:
            raise EngineFailed("the engine failed while it was needed")
        self.arena.record_submission(slot, deadline, now, wanted)
        reply: asyncio.Future[None] = self._loop.create_future()
        self.submitted[slot] = reply
        self._send(slot)
        return reply

    def leave(self, slot: int, writing: Writing | None, hung_up: bool) -> None:
        """Frees ``slot``: at once, after the ``writing`` decoder, or after the engine's reply.

        ``hung_up`` says that the client has disconnected.
        """
        if slot not in self.submitted:
            self._count(hung_up)
            if writing is None:
                self.arena.release(slot)
            else:
                writing.abandon(lambda: self.arena.release(slot))
        elif not self.failed:
            self.submitted[slot] = None
            if hung_up:
                self._hung_up.add(slot)
            self._send(~slot)

    def _count(self, hung_up: bool) -> None:
        if hung_up:
            self._cancelled()

    def leave_engine(self) -> None:
        """Closes the connection to an engine that may live on. No decoder may write into its slots any more."""
        for writing in self._files.values():
            writing.fail(EngineFailed("the engine was left while it decoded this image"))
        self._files.clear()
        self.fail()

    def fail(self) -> None:
        """Ends the connection after the engine's end. All waiting requests get `EngineFailed`; no slot is released."""
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
