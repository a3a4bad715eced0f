"""A place for one image: filled by a decoder, answered by the engine whose arena it is in.

An engine that dies leaves its arena behind, which this process has mapped: the pixels are copied into a place of
another engine, the standby or the one that comes back, and submitted once more. An image that was with two engines
when they died goes to no third, for it may be what they died of.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.engine.arena import Outcome
from service.engine.connection import Connection
from service.errors import DeadlineExceeded, EngineFailed, InternalError
from service.shared.outputs import OutputKind, OutputRequest
from service.shared.writing import Decoders, Encoded, FileWriting, Work, Writing

log = logging.getLogger(__name__)

#: Engines that may die while they have an image: with one more it is answered 503.
_MOST_DEATHS = 1
#: Attributes of an enumeration's class are slow to find.
_OK, _EXPIRED = int(Outcome.OK), int(Outcome.EXPIRED)


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


class Others(Protocol):
    """The engines of a model."""

    async def acquire_elsewhere(
        self, failed: Connection, deadline: float, bulk: bool
    ) -> tuple[Connection, int]:
        """A place with another engine than the one that has ``failed``, waiting for one until ``deadline``.

        Raises `DeadlineExceeded`, and `EngineFailed` where no other is going to come.
        """

    def record_resubmission(self) -> None:
        """An image is submitted once more."""


class Slot:
    """A place in the arena for one image, and the right to be answered. Use it in a ``with`` statement."""

    def __init__(
        self, connection: Connection, number: int, clock: Callable[[], float], others: Others
    ) -> None:
        self.number = number
        self._connection = connection
        self._clock = clock
        self._others = others
        self._deaths = 0
        """Engines that have died while they had this image."""
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

    def belongs_to(self, engines: Others) -> bool:
        """Whether it is a place with one of those ``engines``."""
        return self._others is engines

    def record_admission(self, deadline: float, bulk: bool) -> None:
        """When the image will have to be answered, and how urgent it is."""
        self._connection.arena.record_admission(self.number, deadline, bulk)

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
        if isinstance(writing, FileWriting) and writing.lost:
            self._deaths += 1

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

    async def answer(
        self, deadline: float, length: int, wanted: OutputRequest = OutputKind.CLASSIFY
    ) -> Answer:
        """Submits the slot for what is ``wanted`` and waits for the engine's reply, ``length`` float32 of it.

        An engine that dies is followed by another. Raises `DeadlineExceeded` at the ``deadline`` (seconds of the
        client's clock) whatever the engines do, `EngineFailed` when a second one died or no other will come,
        `InternalError` when the model failed.
        """
        submitted = self._clock()
        while not await self._replied(wanted, submitted, deadline):
            if self._deaths > _MOST_DEATHS:
                log.error("two engines died while they had the same image; it is answered 503")
                raise EngineFailed("two engines failed one after the other while they held this request")
            await self._move(deadline)
        return self._read(length)

    async def _replied(self, wanted: OutputRequest, submitted: float, deadline: float) -> bool:
        """Whether the engine has replied; False when it is dead."""
        connection = self._connection
        if connection.failed:
            return False
        reply = connection.submit(self.number, wanted, submitted, deadline)
        if self._deaths:
            self._others.record_resubmission()
        patience = max(0.0, deadline - self._clock())
        timer = reply.get_loop().call_later(patience, _fail, reply, _deadline_passed)
        try:
            await reply
        except EngineFailed:
            self._deaths += 1
            return False
        finally:
            timer.cancel()
        return True

    async def _move(self, deadline: float) -> None:
        """To another engine, pixels and all. Nobody else has the old place: its owner's byte says whose it is."""
        old, number = self._connection, self.number
        bulk = old.arena.is_bulk(number)
        self._connection, self.number = await self._others.acquire_elsewhere(old, deadline, bulk)
        self.pixels[...] = old.arena.pixels[number]

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


def _fail(awaited: asyncio.Future[None], error: Callable[[], Exception]) -> None:
    if not awaited.done():
        awaited.set_exception(error())


def _not_decoded_in_time() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the image was decoded")


def _deadline_passed() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the model's answer was there (request_timeout_ms)")
