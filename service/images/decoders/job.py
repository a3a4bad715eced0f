"""A picture on its way through a decoder into its slot, which nobody but the event loop writes into."""

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
    """A `service.shared.writing.Writing`. ``leave`` is told when nobody waits for it any more."""

    def __init__(
        self, picture: Picture, pixels: NDArray[np.uint8], ended: Ended, leave: Callable[[Job], None]
    ) -> None:
        self.picture = picture
        self.pixels = pixels
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.cost = SMALL
        """What it may take, as far as that is known."""
        self.reserved = 0
        """Bytes that were taken from the budget for it."""
        self.crashes = 0
        self.seconds: float | None = None
        """That a decoder was busy with it; None if none was."""
        self._tell = ended
        self._leave = leave
        self._over = False

    @property
    def memory(self) -> int:
        return self.cost.memory

    @property
    def wanted(self) -> bool:
        """Whether anybody waits for it."""
        return not self._over and not self.done.done()

    @property
    def expired(self) -> bool:
        """Whether its deadline has passed, and no hang-up was before."""
        done = self.done
        return done.done() and not done.cancelled() and isinstance(done.exception(), DeadlineExceeded)

    def end(self, error: Exception | None = None) -> None:
        """It is done, or will never be."""
        if self._over:
            return
        self._over = True
        self._tell(self.seconds)
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)

    def afterwards(self, callback: Callable[[], None]) -> None:
        if not self._over:
            self._leave(self)
            self.end(DeadlineExceeded("nobody waits for this image any more"))
            if not self.done.cancelled():
                self.done.exception()  # nobody asks for it
        callback()


__all__ = ["Cost", "Job"]
