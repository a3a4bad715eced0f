"""Writes of one image into its slot, which a front-end awaits or gives up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

#: A function that fills a slot's pixels, uint8 ``[H, W, C]``.
Work = Callable[[NDArray[np.uint8]], Any]


@runtime_checkable
class Encoded(Protocol):
    """Work whose encoded file another process can decode instead."""

    def file(self) -> bytes | None:
        """The encoded file; None if only the work itself can decode it."""


class Writing(Protocol):
    """A write into a slot, as the event loop sees it."""

    done: asyncio.Future[None]

    def abandon(self, callback: Callable[[], None]) -> None:
        """Gives the write up if it has not ended. Calls ``callback`` when nothing writes into the slot any more."""


class FileWriting:
    """A write by the engine, which decodes the file in its slot; if it refuses, a decoder's write (``fallback``)."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fallback: Callable[[], Writing]) -> None:
        self.done: asyncio.Future[None] = loop.create_future()
        self._start_fallback = fallback
        self._fallback: Writing | None = None
        self._replied = False
        self.lost = False
        """True if the engine ended while it had the file."""
        self._on_abandoned: Callable[[], None] | None = None
        """The callback of a write that was given up before the engine replied."""

    def abandon(self, callback: Callable[[], None]) -> None:
        if self._fallback is not None:
            self._fallback.abandon(callback)
        elif self._replied:
            callback()
        else:
            self._on_abandoned = callback

    def reply(self, decoded: bool) -> None:
        """Ends the engine's turn: the slot holds pixels if ``decoded``, else a decoder begins to write them."""
        self._replied = True
        if self._on_abandoned is not None:
            self._on_abandoned()
        elif decoded:
            if not self.done.done():
                self.done.set_result(None)
        elif not self.done.done():
            self._fallback = self._start_fallback()
            self._fallback.done.add_done_callback(self._copy_outcome)

    def fail(self, error: Exception) -> None:
        """Ends the write with ``error``, since the front-end has given up the engine and the slot."""
        if not self.done.done():
            self.done.set_exception(error)

    def give_back(self) -> None:
        """Lets a decoder begin, since the engine ended while it had the file."""
        self.lost = True
        self.reply(False)

    def _copy_outcome(self, other: asyncio.Future[None]) -> None:
        error = None if other.cancelled() else other.exception()
        if self.done.done():
            return
        if error is not None:
            self.done.set_exception(error)
        else:
            self.done.set_result(None)


#: Called once on the event loop with the seconds for which a decoder was occupied; None if none was.
Ended = Callable[[float | None], None]


class Decoders(Protocol):
    """The decoders: threads or processes that write pixels into slots."""

    @property
    def stuck(self) -> bool:
        """True if images wait and none has been begun for a long time."""

    def begin(self, work: Work, pixels: NDArray[np.uint8], ended: Ended) -> Writing:
        """Lets a decoder fill ``pixels`` with ``work``. Call it on the event loop."""

    def submit(self, job: Callable[[], object], /) -> object:
        """Runs ``job``, which must not raise, in a thread."""
