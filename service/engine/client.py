"""The front-end's door to the engine. Lives on one event loop; never imports torch.

What becomes of a slot, seen from here:

    take ──▶ ours ──fill──▶ ours, a thread writes ──answer──▶ the engine's ──reply──▶ ours ──exit──▶ free

Whoever leaves the ``with`` block early (hang-up, deadline, error) owes nothing: the slot comes free
at once when it is ours, when the thread has written its last byte, or when the engine has handed it
back after it was told of the cancellation. Never earlier, so nobody writes into another's image.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from service.engine.arena import FILE, Arena, Decoding, Gauge, Outcome
from service.engine.estimate import Backlog, Pace, seconds_until_answered
from service.engine.transport import Link
from service.engine.writing import Decoders, Encoded, FileWriting, Work, Writing
from service.errors import DeadlineExceeded, EngineFailed, InternalError, NotReady, Overloaded
from service.task import Task, Wanted

#: Attributes of an enumeration's class are slow to find.
_OK, _EXPIRED = int(Outcome.OK), int(Outcome.EXPIRED)
#: Seconds between two looks for a slot that another front-end may have released.
_LOOK_AGAIN = 0.005
#: Retry-After in seconds, at least and at most, and how far it is spread so that clients do not return together.
_SHORTEST_RETRY, _LONGEST_RETRY, _SPREAD = 1.0, 60.0, 0.25
#: One slot in so many is never a bulk request's: a queue full of them would refuse everybody else.
_RESERVED = 2
#: The weight of the newest image in what decoding one takes.
_NEWEST = 0.1


@dataclass(frozen=True)
class Answer:
    """What the engine made of one image. Durations in seconds."""

    result: NDArray[np.float32]
    """What was wanted, float32 ``[length]``, a copy."""
    queue: float
    inference: float
    batch: int
    batch_size: int
    finished: float
    """When the batch was done, on the monotonic clock."""


class EngineClient:
    """Slots of the engine that is there now. Construct, `attach`; `attach` again when it was replaced."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, threads: int = 0, thread_memory: int = 0
    ) -> None:
        """``threads`` decode, in processes or threads; 0 where nobody counts them.

        Each may take ``thread_memory`` bytes without asking.
        """
        self.clock = clock
        self._threads = threads
        self._thread_memory = thread_memory
        self._memory = 0
        """Bytes that images here have reserved, whatever engine there is."""
        self._busy = 0.0
        self._connection: _Connection | None = None
        self._cancelled: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        return f"<EngineClient {self._connection.arena if self._connection else 'not connected'}>"

    def on_cancelled(self, callback: Callable[[], None]) -> None:
        """``callback`` is called for every image whose client went away before the model ran."""
        self._cancelled = callback

    def attach(self, arena: Arena, link: Link, number: int) -> None:
        """Serves from ``arena`` from now on, as front-end ``number``. To be called on the event loop."""
        self.detach()
        self._connection = _Connection(arena, link, number, self._cancelled, self._threads)
        self._connection.listen()
        arena.decoding[number, Decoding.MEMORY] = self._memory

    def detach(self) -> None:
        """Lets go of the engine; whoever waits for it gets `EngineFailed`."""
        if self._connection is not None:
            self._connection.fail()
            self._connection = None

    @property
    def connected(self) -> bool:
        """Whether there is an engine, and it has not closed its end."""
        return self._connection is not None and not self._connection.failed

    @property
    def arena(self) -> Arena | None:
        """The arena of the engine that is there; None without one."""
        return self._connection.arena if self._connection is not None and self.connected else None

    @property
    def pending(self) -> int:
        """Slots that this front-end has with the engine."""
        return len(self._connection.submitted) if self._connection is not None else 0

    @property
    def memory_limit(self) -> float:
        """Bytes that one image may reserve at most."""
        arena = self.arena
        if arena is None:
            return math.inf
        threads = float(arena.decoding[:, Decoding.THREADS].sum())
        return float(arena.gauges[Gauge.DECODE_MEMORY]) - threads * self._thread_memory

    def take_memory(self, size: int) -> bool:
        """Reserves ``size`` bytes for decoding, if all front-ends together still fit their limit."""
        connection = self._connection
        if connection is not None and not connection.failed:
            arena = connection.arena
            with arena.deciding_about_memory():
                reserved = float(arena.decoding[:, Decoding.MEMORY].sum())
                if reserved + size > self.memory_limit:
                    return False
                arena.decoding[connection.number, Decoding.MEMORY] += size
        self._memory += size
        return True

    def give_memory(self, size: int) -> None:
        """Gives back what was taken."""
        self._memory -= size
        connection = self._connection
        if connection is not None and not connection.failed:
            connection.arena.decoding[connection.number, Decoding.MEMORY] = self._memory

    def note_busy(self, seconds: float) -> None:
        """Tells everyone that the decoders here have been busy for ``seconds``, since they began."""
        connection = self._connection
        if connection is not None and not connection.failed:
            connection.arena.decoding[connection.number, Decoding.BUSY] += seconds - self._busy
        self._busy = seconds

    def offer(self, images: int = 1) -> None:
        """Counts ``images`` as arrived, admitted or not: what an autoscaler follows. Bulk ones are not to be counted:
        they take what is left, however much that is."""
        connection = self._ready()
        connection.arena.arrivals[connection.number] += np.uint64(images)

    def check_room(self, deadline: float = math.inf, bulk: bool = False) -> None:
        """Raises what `take` would, without taking: before a body is read that nobody could serve."""
        connection = self._ready()
        if connection.arena.free <= connection.reserve(bulk):
            raise self._overloaded(connection)
        self._refuse_hopeless(connection, deadline, bulk)

    def take(self, deadline: float = math.inf, bulk: bool = False) -> Slot:
        """A slot, to be used in a ``with`` statement. ``bulk`` waits for everybody else.

        Raises `Overloaded` when none is free or the answer would come after the ``deadline`` (seconds of the
        client's clock), `NotReady` or `EngineFailed` when there is no engine.
        """
        connection = self._ready()
        self._refuse_hopeless(connection, deadline, bulk)
        room = not bulk or connection.arena.free > connection.reserve(bulk)
        slot = connection.arena.take(connection.number) if room else None
        if slot is None:
            raise self._overloaded(connection)
        connection.arena.note_admission(slot, deadline, bulk)
        return Slot(connection, slot, self.clock)

    async def take_in_turn(self, deadline: float, bulk: bool = False) -> Slot:
        """A slot, waiting for one until ``deadline``: for the second and later images of one request."""
        while True:
            try:
                slot = self.take(bulk=bulk)
                self._ready().arena.note_admission(slot.number, deadline, bulk)
                return slot
            except Overloaded:
                if self.clock() >= deadline:
                    raise DeadlineExceeded(
                        "the deadline passed before there was room for every image"
                    ) from None
                await asyncio.sleep(_LOOK_AGAIN)

    def _ready(self) -> _Connection:
        if self._connection is None:
            raise NotReady("the model is not loaded yet")
        if self._connection.failed:
            raise EngineFailed("the engine has failed and is being started again")
        return self._connection

    def _refuse_hopeless(self, connection: _Connection, deadline: float, bulk: bool) -> None:
        """Raises `Overloaded` for a ``deadline`` that cannot be met. One that has passed is no matter of load."""
        now = self.clock()
        patience = deadline - now
        arena = connection.arena
        taken = arena.geometry.slots - arena.free
        # Only who could be too late behind everybody needs to know exactly who is ahead.
        if patience <= 0 or connection.wait(taken, now) <= patience:
            return
        ahead = taken if bulk else arena.due_by(deadline)
        wait = connection.wait(ahead, now)
        if wait > patience:
            reason = f"an answer would take {wait:.2g} s and there are {patience:.2g} s (request_timeout_ms)"
            raise _overload(reason, wait - patience)

    def _overloaded(self, connection: _Connection) -> Overloaded:
        slots = connection.arena.geometry.slots
        capacity = float(connection.arena.gauges[Gauge.CAPACITY])
        reason = f"all {slots} places are taken (queue_capacity)"
        return _overload(reason, slots / capacity if capacity > 0 else _SHORTEST_RETRY)


class Slot:
    """A place in the arena for one image, and the right to be answered. Use it in a ``with`` statement."""

    def __init__(self, connection: _Connection, number: int, clock: Callable[[], float]) -> None:
        self.number = number
        self._connection = connection
        self._clock = clock
        self._writing: Writing | None = None
        self._left = False

    def __repr__(self) -> str:
        return f"<Slot {self.number}>"

    def __enter__(self) -> Slot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._left:  # a guard around several tasks may leave after the one that used the slot
            return
        self._left = True
        hung_up = kind is not None and issubclass(kind, asyncio.CancelledError)
        self._connection.leave(self.number, self._writing, hung_up)

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The image, uint8 ``[H, W, C]``, in shared memory."""
        pixels: NDArray[np.uint8] = self._connection.arena.pixels[self.number]
        return pixels

    async def fill(self, decoders: Decoders, work: Work, deadline: float) -> None:
        """Lets one of ``decoders`` run ``work(pixels)``. Raises what it raises, or `DeadlineExceeded`.

        The slot stays taken until nobody writes into it, however early the caller leaves.
        """
        loop = asyncio.get_running_loop()
        self._writing = writing = self._begin(decoders, work)
        timer = loop.call_later(max(0.0, deadline - self._clock()), _fail, writing.done, _not_decoded_in_time)
        try:
            await writing.done
        finally:
            timer.cancel()

    def _begin(self, decoders: Decoders, work: Work) -> Writing:
        """In the engine, if no decoder is free here and it takes such files; else by one of ``decoders``."""
        connection = self._connection

        def by_decoder() -> Writing:
            connection.decoding += 1
            return decoders.begin(work, self.pixels, connection.decoded)

        data = work.file() if isinstance(work, Encoded) and connection.takes_files() else None
        if data is None or len(data) > self.pixels.size:
            return by_decoder()
        self.pixels.reshape(-1)[: len(data)] = np.frombuffer(data, np.uint8)
        return connection.send_file(self.number, len(data), by_decoder)

    async def answer(self, deadline: float, length: int, wanted: Wanted = Task.CLASSIFY) -> Answer:
        """Submits the slot for what is ``wanted`` and waits for the engine's reply, ``length`` float32 of it.

        Raises `DeadlineExceeded` at the ``deadline`` (seconds of the client's clock) whatever the
        engine does, `EngineFailed` when it died, `InternalError` when the model failed.
        """
        submitted = self._clock()
        reply = self._connection.submit(self.number, wanted, submitted, deadline)
        timer = reply.get_loop().call_later(max(0.0, deadline - submitted), _fail, reply, _deadline_passed)
        try:
            await reply
        finally:
            timer.cancel()
        return self._read(length)

    def _read(self, length: int) -> Answer:
        arena = self._connection.arena
        record = arena.record(self.number)
        if record.outcome == _EXPIRED:
            raise _deadline_passed()
        if record.outcome != _OK:
            raise InternalError("the model failed on the batch that this image was in")
        return Answer(
            result=arena.results[self.number, :length].copy(),
            queue=record.started - record.submitted,
            inference=record.finished - record.started,
            batch=record.batch,
            batch_size=record.batch_size,
            finished=record.finished,
        )


class _Connection:
    """One engine, from `attach` to its death. Knows which slots it has, and who waits for them."""

    def __init__(
        self, arena: Arena, link: Link, number: int, cancelled: Callable[[], None], threads: int
    ) -> None:
        self.arena = arena
        self.number = number
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
        self._loop.add_reader(self._link.fileno(), self._hear)

    def wait(self, ahead: int, now: float) -> float:
        """Seconds until an image would be answered that comes behind ``ahead`` others."""
        gauge = self.arena.gauges.item
        seconds, capacity, size = gauge(Gauge.PASS), gauge(Gauge.CAPACITY), gauge(Gauge.MAX_BATCH_SIZE)
        pace = Pace(seconds, capacity, int(size), self._decode_seconds, self._threads)
        running_for = now - gauge(Gauge.BUSY_SINCE)
        return seconds_until_answered(
            pace, Backlog(ahead, int(gauge(Gauge.RUNNING)), running_for, self.decoding)
        )

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
        return 0 < self._threads <= self.decoding and self.arena.gauges.item(Gauge.FILES) > len(self._files)

    def send_file(self, slot: int, length: int, otherwise: Callable[[], Writing]) -> Writing:
        """The engine decodes the file in ``slot``; what it will not, ``otherwise`` does."""
        self.arena.note_file(slot, length)
        writing = self._files[slot] = FileWriting(self._loop, otherwise)
        self._send(slot + FILE)
        return writing

    def submit(self, slot: int, wanted: Wanted, now: float, deadline: float) -> asyncio.Future[None]:
        if self.failed:
            raise EngineFailed("the engine failed while it was needed")
        self.arena.note_submitted(slot, deadline, now, wanted)
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
            writing.fail(EngineFailed("the engine failed while it decoded this image"))

    def _hear(self) -> None:
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


def _overload(reason: str, wait: float) -> Overloaded:
    wait = min(max(wait, _SHORTEST_RETRY), _LONGEST_RETRY) * (1 + _SPREAD * random.random())
    return Overloaded(f"{reason}; try again in about {wait:.0f} s", retry_after=wait)


def _fail(awaited: asyncio.Future[None], error: Callable[[], Exception]) -> None:
    if not awaited.done():
        awaited.set_exception(error())


def _not_decoded_in_time() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the image was decoded")


def _deadline_passed() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the model's answer was there (request_timeout_ms)")
