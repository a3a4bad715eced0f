"""A picture that a decoder works on. Only the event loop writes its pixels into the slot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from service.errors import DeadlineExceeded
from service.images.decoders.cost import SMALL, Cost
from service.images.decoders.picture import Picture
from service.shared.writing import Ended


class Job:
    """A `service.shared.writing.Writing` for a decoder process. ``on_abandoned`` is called when nobody waits for it any
    more."""

    def __init__(
        self, picture: Picture, pixels: NDArray[np.uint8], ended: Ended, on_abandoned: Callable[[Job], None]
    ) -> None:
        self.picture = picture
        self.pixels = pixels
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.cost = SMALL
        """Cost that it is allowed, as far as that is known."""
        self.reserved = 0
        """Bytes taken from the memory budget for it."""
        self.crashes = 0
        self.seconds: float | None = None
        """Seconds that decoders were busy with it; None if none was."""
        self._on_ended = ended
        self._on_abandoned = on_abandoned
        self._over = False

    @property
    def memory(self) -> int:
        return self.cost.memory

    @property
    def wanted(self) -> bool:
        """True while somebody waits for the result."""
        return not self._over and not self.done.done()

    @property
    def expired(self) -> bool:
        """True if the deadline has passed while the client was still connected."""
        done = self.done
        return done.done() and not done.cancelled() and isinstance(done.exception(), DeadlineExceeded)

    def end(self, error: Exception | None = None) -> None:
        """Completes the job, with its pixels written or with ``error``. Only the first call counts."""
        if self._over:
            return
        self._over = True
        self._on_ended(self.seconds)
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)

    def abandon(self, callback: Callable[[], None]) -> None:
        if not self._over:
            self._on_abandoned(self)
            self.end(DeadlineExceeded("nobody waits for this image any more"))
            if not self.done.cancelled():
                self.done.exception()  # marks the exception as retrieved, or asyncio logs it
        callback()


__all__ = ["Cost", "Job"]
