"""How many bytes of requests a front-end may hold at a time: bodies that arrive or wait for their answer, and heads.

    room(n) ──▶ taken: the bytes are counted        ──▶ refused: nobody who stalls could make room

A body is counted as it arrives, since a length that is only declared costs nothing. When there is no room, those
whose bodies have not moved for a while lose theirs first: a client that stopped in the middle must not keep out
one that sends.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from contextlib import suppress

from service.errors import IntakeFull

#: Bytes for each front-end where memory is plenty: forty photos of a telephone.
_PLENTY = 128 << 20
#: The part of the memory limit that all front-ends may use for it together.
_PART = 8
#: Bodies of the largest size that always have room, whatever the memory: one that arrives and one that is unpacked.
_FEWEST = 2
#: Seconds without a byte after which a body has stalled.
_STALLED = 1.0
#: Bytes held at a time after which free memory is handed back to the system, and the part of them still held then.
_WORTH_TRIMMING, _LEFT = 16 << 20, 1 / 8


def budget(memory: int | None, frontends: int, largest: int) -> int:
    """Bytes for one of ``frontends``, from the memory limit (None: unknown) and the ``largest`` body."""
    part = _PLENTY if memory is None else memory // _PART // frontends
    return max(_FEWEST * largest, min(_PLENTY, part))


class Intake:
    """The budget. Lives on the event loop. ``clock`` counts seconds."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self.held = 0
        self._peak = 0
        self._clock = clock
        self._arriving: dict[Share, None] = {}
        """Bodies that are not there yet, the one that moved last at the end."""

    def __repr__(self) -> str:
        return f"<Intake {self.held:,} of {self.most:,} bytes>"

    def take(self, size: int, asking: Share | None = None) -> bool:
        """Counts ``size`` bytes more, if there is room for them or somebody who stalls makes it."""
        while self.held + size > self.most:
            if not self._drop_one(asking):
                return False
        self.held += size
        self._peak = max(self._peak, self.held)
        return True

    def give(self, size: int) -> None:
        """``size`` bytes are free again."""
        self.held -= size
        if self._peak > _WORTH_TRIMMING and self.held <= _LEFT * self._peak:
            self._peak = self.held
            hand_back()

    def share(self, on_dropped: Callable[[], None]) -> Share:
        """The part of one body. ``on_dropped`` is called if it loses its place."""
        return Share(self, on_dropped)

    def _drop_one(self, asking: Share | None) -> bool:
        stale = self._clock() - _STALLED
        for share in self._arriving:
            if share.moved > stale:
                return False
            if share is not asking:
                share.drop()
                return True
        return False

    # For `Share` alone

    def _moved(self, share: Share) -> None:
        self._arriving.pop(share, None)
        self._arriving[share] = None
        share.moved = self._clock()

    def _settled(self, share: Share) -> None:
        self._arriving.pop(share, None)


class Share:
    """What one request holds. `grow` as it arrives, `settle` when it is there, `release` in the end."""

    __slots__ = ("_intake", "_on_dropped", "dropped", "moved", "size")

    def __init__(self, intake: Intake, on_dropped: Callable[[], None]) -> None:
        self._intake = intake
        self._on_dropped = on_dropped
        self.size = 0
        self.moved = 0.0
        self.dropped = False

    def grow(self, size: int) -> None:
        """``size`` bytes more have come. Raises `IntakeFull`."""
        if self.dropped or not self._intake.take(size, self):
            raise IntakeFull(
                f"uploads of more than {self._intake.most >> 20} MiB are being received; try again in a moment"
            )
        self.size += size
        self._intake._moved(self)

    def settle(self) -> None:
        """All of it has come: from now on it is the service's to work on."""
        self._intake._settled(self)

    def shrink(self, size: int) -> None:
        """``size`` bytes are not needed after all."""
        self.size -= size
        self._intake.give(size)

    def drop(self) -> None:
        """Loses its place to somebody else."""
        self.dropped = True
        self.release()
        self._on_dropped()

    def release(self) -> None:
        """Nothing is held any more. May be called again."""
        self._intake._settled(self)
        size, self.size = self.size, 0
        if size:
            self._intake.give(size)


def hand_back() -> None:
    """Gives free memory to the system. glibc keeps what was freed below something that is still used."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
