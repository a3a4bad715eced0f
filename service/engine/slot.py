"""A slot for one image: filled by a decoder, answered by the engine whose arena it is in.

This process has the arena mapped even after its engine died. Then the pixels are copied into a slot of another engine
(the standby, or the successor) and submitted again. An image that two engines held when they died is not submitted a
third time, since it may be the cause.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.engine.arena import Outcome
from service.engine.connection import Connection
from service.errors import DeadlineExceeded, EngineFailed, InternalError
from service.shared.outputs import OutputKind, OutputRequest
from service.shared.writing import Decoders, Encoded, FileWriting, Work, Writing

log = logging.getLogger(__name__)

#: The number of engines that may die while they hold an image; after one more it is answered 503.
_MAX_DEATHS = 1
#: As plain numbers, since the attributes of an enumeration are slow to look up.
_OK, _EXPIRED = int(Outcome.OK), int(Outcome.EXPIRED)


@dataclass(frozen=True)
class SlotAnswer:
    """The engine's answer to one image. Durations are seconds."""

    result: NDArray[np.float32]
    """The wanted output, float32 ``[length]``, a copy."""
    queue: float
    inference: float
    batch: int
    batch_size: int
    finished: float
    """The end of the batch, in seconds of the monotonic clock."""


class Others(Protocol):
    """The engines of a model."""

    async def acquire_elsewhere(
        self, failed: Connection, deadline: float, bulk: bool
    ) -> tuple[Connection, int]:
        """A slot of another engine than the ``failed`` one, with the same model. Waits for one until ``deadline``.

        Raises `DeadlineExceeded`, or `EngineFailed` if no other engine will come.
        """

    def record_resubmission(self) -> None:
        """Counts an image that is submitted again."""


class Slot:
    """An admitted image's slot. Use it in a ``with`` statement, whose end frees the slot."""

    def __init__(
        self, connection: Connection, number: int, clock: Callable[[], float], others: Others
    ) -> None:
        self.number = number
        self._connection = connection
        self._clock = clock
        self._others = others
        self._deaths = 0
        """The number of engines that died while they held this image."""
        self._writing: Writing | None = None
        self._left = False

    def __repr__(self) -> str:
        return f"<Slot {self.number}>"

    def __enter__(self) -> Slot:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._left:  # a guard around several tasks may leave again after the task that used the slot
            return
        self._left = True
        hung_up = kind is not None and issubclass(kind, asyncio.CancelledError)
        self._connection.leave(self.number, self._writing, hung_up)

    def belongs_to(self, engines: Others) -> bool:
        """True if the slot belongs to one of those ``engines``."""
        return self._others is engines

    def record_admission(self, deadline: float, bulk: bool) -> None:
        """Writes the image's deadline and class into the arena."""
        self._connection.arena.record_admission(self.number, deadline, bulk)

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The image, uint8 ``[H, W, C]``, in shared memory."""
        pixels: NDArray[np.uint8] = self._connection.arena.pixels[self.number]
        return pixels

    async def fill(self, decoders: Decoders, work: Work, deadline: float) -> None:
        """Lets one of ``decoders`` run ``work(pixels)``. Raises what it raises, or `DeadlineExceeded`.

        The slot stays taken until no decoder writes into it, however early the caller leaves.
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
        """Begins the write: in the engine if it takes the file and no decoder is free, else in ``decoders``."""
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
    ) -> SlotAnswer:
        """Submits the slot for the output ``wanted``, waits for the reply and returns ``length`` float32 of it.

        If the engine dies, the image is submitted to another one. Raises `DeadlineExceeded` at the ``deadline``
        (seconds of the client's clock) in any case, `EngineFailed` if a second engine dies or no other will come, and
        `InternalError` if the model fails.
        """
        submitted = self._clock()
        while not await self._replied(wanted, submitted, deadline):
            if self._deaths > _MAX_DEATHS:
                log.error("two engines died while they had the same image; it is answered 503")
                raise EngineFailed("two engines failed one after the other while they held this request")
            await self._move(deadline)
        return self._read(length)

    async def _replied(self, wanted: OutputRequest, submitted: float, deadline: float) -> bool:
        """Submits the slot and waits. True when the engine has replied, False if it is dead."""
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
        """Moves the image to a slot of another engine. The old slot's owner byte keeps others from its pixels."""
        old, number = self._connection, self.number
        bulk = old.arena.is_bulk(number)
        self._connection, self.number = await self._others.acquire_elsewhere(old, deadline, bulk)
        self.pixels[...] = old.arena.pixels[number]

    def _read(self, length: int) -> SlotAnswer:
        arena = self._connection.arena
        record = arena.record(self.number)
        if record.outcome == _EXPIRED:
            raise _deadline_passed()
        if record.outcome != _OK:
            raise InternalError("the model failed on the batch that this image was in")
        return SlotAnswer(
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
