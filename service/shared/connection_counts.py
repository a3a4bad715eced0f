"""The number of open connections of each front-end, in shared memory: what a fair share of the next ones is.

Each front-end writes its own place and reads all of them. A place whose front-end has written nothing for a second
does not count: its process has died, hangs, is stopped, or has not begun.
"""

from __future__ import annotations

import mmap
import struct
import time

_PLACE = struct.Struct("@dq")
#: Seconds after which a place that was not written does not count. A front-end writes ten times a second.
_FRESH = 1.0
#: A front-end takes no further connection while it has more than this multiple of the mean, and so many more.
_MULTIPLE, _MORE = 1.125, 1.0


class ConnectionCounts:
    """Memory shared with forked processes, with ``places`` for front-ends, numbered from 0."""

    def __init__(self, places: int) -> None:
        self._memory = mmap.mmap(-1, places * _PLACE.size)
        self._all = struct.Struct("@" + "dq" * places)

    def __repr__(self) -> str:
        return f"<ConnectionCounts {self.fresh()}>"

    def share(self, place: int) -> Share:
        """The share of the front-end at ``place``."""
        return Share(self, place)

    def write(self, place: int, held: int, when: float) -> None:
        """Notes ``held`` connections at the time ``when`` of the monotonic clock, which all processes share."""
        _PLACE.pack_into(self._memory, place * _PLACE.size, when, held)

    def fresh(self) -> list[int]:
        """The numbers of the front-ends that live."""
        oldest = time.monotonic() - _FRESH
        values = self._all.unpack_from(self._memory)
        return [held for when, held in zip(values[::2], values[1::2], strict=True) if when > oldest]


class Share:
    """One front-end's share of all connections."""

    def __init__(self, counts: ConnectionCounts, place: int) -> None:
        self._counts = counts
        self._place = place

    @classmethod
    def of_all(cls) -> Share:
        """The share of a front-end that is alone."""
        return cls(ConnectionCounts(1), 0)

    def note(self, held: int) -> None:
        """Tells the other front-ends that this one has ``held`` open connections."""
        self._counts.write(self._place, held, time.monotonic())

    def allows_another(self, held: int) -> bool:
        """False if this front-end's ``held`` connections are clearly more than the mean, which it notes them for."""
        if held <= _MORE:
            return True
        self.note(held)
        every = self._counts.fresh()
        return (held - _MORE) * len(every) <= _MULTIPLE * sum(every)

    def leave(self) -> None:
        """Notes that this front-end takes no more connections."""
        self._counts.write(self._place, 0, 0.0)
