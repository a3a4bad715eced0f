"""A place for one image: filled by a decoder, answered by the engine whose arena it is in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from service.engine.arena import Outcome
from service.engine.connection import Connection
from service.engine.writing import Decoders, Encoded, Work, Writing
from service.errors import DeadlineExceeded, InternalError
from service.task import Task, Wanted

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


class Slot:
    """A place in the arena for one image, and the right to be answered. Use it in a ``with`` statement."""

    def __init__(self, connection: Connection, number: int, clock: Callable[[], float]) -> None:
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

    def note_admission(self, deadline: float, bulk: bool) -> None:
        """When the image will have to be answered, and how urgent it is."""
        self._connection.arena.note_admission(self.number, deadline, bulk)

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


def _fail(awaited: asyncio.Future[None], error: Callable[[], Exception]) -> None:
    if not awaited.done():
        awaited.set_exception(error())


def _not_decoded_in_time() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the image was decoded")


def _deadline_passed() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the model's answer was there (request_timeout_ms)")
