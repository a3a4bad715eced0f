"""One image on its way into its slot: what a front-end waits for, and gives up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

#: Fills a slot's pixels, uint8 ``[H, W, C]``.
Work = Callable[[NDArray[np.uint8]], Any]


@runtime_checkable
class Encoded(Protocol):
    """Work that comes from a file which others could decode as well."""

    def file(self) -> bytes | None:
        """The file, if it is a plain one; else only the work itself knows what to do."""


class Writing(Protocol):
    """A write into a slot, as the event loop sees it."""

    done: asyncio.Future[None]

    def afterwards(self, callback: Callable[[], None]) -> None:
        """Gives the write up, if it has not ended, and calls ``callback`` when nobody writes into the slot any more."""


class FileWriting:
    """A file that the engine decodes in its slot, as the event loop sees it; a decoder's write if it will not."""

    def __init__(self, loop: asyncio.AbstractEventLoop, otherwise: Callable[[], Writing]) -> None:
        self.done: asyncio.Future[None] = loop.create_future()
        self._otherwise = otherwise
        self._instead: Writing | None = None
        self._replied = False
        self.lost = False
        """Whether the engine has gone while it had the file."""
        self._afterwards: Callable[[], None] | None = None
        """Set when nobody wants the pixels any more."""

    def afterwards(self, callback: Callable[[], None]) -> None:
        if self._instead is not None:
            self._instead.afterwards(callback)
        elif self._replied:
            callback()
        else:
            self._afterwards = callback

    def reply(self, decoded: bool) -> None:
        """The slot is the front-end's again, with pixels in it or not."""
        self._replied = True
        if self._afterwards is not None:
            self._afterwards()
        elif decoded:
            if not self.done.done():
                self.done.set_result(None)
        elif not self.done.done():
            self._instead = self._otherwise()
            self._instead.done.add_done_callback(self._pass_on)

    def fail(self, error: Exception) -> None:
        """The front-end has let go of the engine, and of the slot."""
        if not self.done.done():
            self.done.set_exception(error)

    def give_back(self) -> None:
        """The engine has gone: a decoder begins again."""
        self.lost = True
        self.reply(False)

    def _pass_on(self, other: asyncio.Future[None]) -> None:
        error = None if other.cancelled() else other.exception()
        if self.done.done():
            return
        if error is not None:
            self.done.set_exception(error)
        else:
            self.done.set_result(None)


#: Told on the loop, once: how many seconds a decoder was occupied, None when none was.
Ended = Callable[[float | None], None]


class Decoders(Protocol):
    """Where pixels are written."""

    @property
    def stuck(self) -> bool:
        """Whether images wait and none has been begun for long."""

    def begin(self, work: Work, pixels: NDArray[np.uint8], ended: Ended) -> Writing:
        """Lets ``work`` fill ``pixels``. To be called on the event loop."""

    def submit(self, job: Callable[[], object], /) -> object:
        """Runs ``job``, which must not raise, in a thread."""
