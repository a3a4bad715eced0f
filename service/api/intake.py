"""The budget for bytes of requests that a front-end may hold: heads, and bodies that arrive or wait for their answer.

    take(n) ──▶ True: the bytes are counted        ──▶ False: no stalled body could make room

A body's bytes are counted when they arrive, since a declared length costs nothing. When the budget is full, bodies that
have not moved for a while are dropped first, so that a client that has stalled does not keep out one that sends.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from service.errors import IntakeFull
from service.host.usage import trim_memory

#: The largest budget of a front-end in bytes: forty photos of a telephone.
_PLENTY = 128 << 20
#: The memory limit divided by this is the budget of all front-ends together.
_PART = 8
#: The least budget in bodies of the largest size: one that arrives and one that is decompressed.
_MIN_BODIES = 2
#: Seconds without a byte after which a body counts as stalled.
_STALLED = 1.0
#: Free memory is handed back to the system when a peak of at least so many bytes has shrunk to this share.
_WORTH_TRIMMING, _LEFT = 16 << 20, 1 / 8


def budget(memory: int | None, frontends: int, largest: int) -> int:
    """The budget of one of ``frontends`` in bytes, from the memory limit (None: unknown) and the ``largest`` body."""
    part = _PLENTY if memory is None else memory // _PART // frontends
    return max(_MIN_BODIES * largest, min(_PLENTY, part))


class Intake:
    """The budget of one front-end, ``limit`` bytes. Used on the event loop. ``clock`` returns seconds."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self.held = 0
        self._peak = 0
        self._clock = clock
        self._arriving: dict[Reservation, None] = {}
        """The incomplete bodies; the one that moved last is at the end."""

    def __repr__(self) -> str:
        return f"<Intake {self.held:,} of {self.limit:,} bytes>"

    def take(self, size: int, asking: Reservation | None = None) -> bool:
        """Counts ``size`` more bytes. False if they do not fit even after stalled bodies other than ``asking``'s are
        dropped."""
        while self.held + size > self.limit:
            if not self._drop_one(asking):
                return False
        self.held += size
        self._peak = max(self._peak, self.held)
        return True

    def give(self, size: int) -> None:
        """Gives ``size`` bytes back."""
        self.held -= size
        if self._peak > _WORTH_TRIMMING and self.held <= _LEFT * self._peak:
            self._peak = self.held
            trim_memory()

    def reserve(self, on_dropped: Callable[[], None]) -> Reservation:
        """A new body's reservation. ``on_dropped`` is called if the body is dropped."""
        return Reservation(self, on_dropped)

    def _drop_one(self, asking: Reservation | None) -> bool:
        stale = self._clock() - _STALLED
        for reservation in self._arriving:
            if reservation.moved > stale:
                return False
            if reservation is not asking:
                reservation.drop()
                return True
        return False

    # For `Reservation` alone

    def _moved(self, reservation: Reservation) -> None:
        self._arriving.pop(reservation, None)
        self._arriving[reservation] = None
        reservation.moved = self._clock()

    def _settled(self, reservation: Reservation) -> None:
        self._arriving.pop(reservation, None)


class Reservation:
    """The bytes of one request: `grow` while it arrives, `settle` when it is complete, `release` at its end."""

    __slots__ = ("_intake", "_on_dropped", "dropped", "moved", "size")

    def __init__(self, intake: Intake, on_dropped: Callable[[], None]) -> None:
        self._intake = intake
        self._on_dropped = on_dropped
        self.size = 0
        self.moved = 0.0
        self.dropped = False

    def grow(self, size: int) -> None:
        """Counts ``size`` more bytes. Raises `IntakeFull`."""
        if self.dropped or not self._intake.take(size, self):
            raise IntakeFull(
                f"uploads of more than {self._intake.limit >> 20} MiB are being received; try again in a moment"
            )
        self.size += size
        self._intake._moved(self)

    def settle(self) -> None:
        """Notes that the body is complete, so that it cannot be dropped any more."""
        self._intake._settled(self)

    def shrink(self, size: int) -> None:
        """Gives ``size`` of its bytes back."""
        self.size -= size
        self._intake.give(size)

    def drop(self) -> None:
        """Gives all bytes back, for another body's sake."""
        self.dropped = True
        self.release()
        self._on_dropped()

    def release(self) -> None:
        """Gives all bytes back. May be called again."""
        self._intake._settled(self)
        size, self.size = self.size, 0
        if size:
            self._intake.give(size)
