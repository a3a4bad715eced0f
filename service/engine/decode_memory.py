"""The memory for decoding large images, which all front-ends share, whatever engines there are.

Each front-end writes what it has reserved into its row of every arena that it is joined to, so that any arena shows
all of it. The newest engine says how much there is: it was measured with all the others there.
"""

from __future__ import annotations

import math

from service.engine.arena import Decoding, Gauge
from service.engine.connection import Connection


class DecodeMemory:
    """This front-end's part. Each of its decoders may take ``thread_memory`` bytes without asking."""

    def __init__(self, thread_memory: int = 0) -> None:
        self._thread_memory = thread_memory
        self._reserved = 0
        """Bytes that images here have reserved, whatever engines there are."""
        self._busy = 0.0
        self._connections: list[Connection] = []

    def __repr__(self) -> str:
        return f"<DecodeMemory {self._reserved} reserved>"

    def join(self, connection: Connection) -> None:
        """A new engine is there."""
        self._connections = [one for one in self._connections if not one.failed] + [connection]
        connection.arena.decoding[connection.number, Decoding.MEMORY] = self._reserved

    @property
    def _newest(self) -> Connection | None:
        return next((one for one in reversed(self._connections) if not one.failed), None)

    @property
    def memory_limit(self) -> float:
        """Bytes that one image may reserve at most."""
        newest = self._newest
        if newest is None:
            return math.inf
        threads = float(newest.arena.decoding[:, Decoding.THREADS].sum())
        return float(newest.arena.gauges[Gauge.DECODE_MEMORY]) - threads * self._thread_memory

    def acquire(self, size: int) -> bool:
        """Reserves ``size`` bytes for decoding, if all front-ends together still fit their limit."""
        newest = self._newest
        if newest is None:
            self._reserve(size)
            return True
        with newest.arena.deciding_about_memory():
            reserved = float(newest.arena.decoding[:, Decoding.MEMORY].sum())
            if reserved + size > self.memory_limit:
                return False
            self._reserve(size)
        return True

    def release(self, size: int) -> None:
        """Gives back what was taken."""
        self._reserve(-size)

    def record_busy(self, seconds: float) -> None:
        """Tells everyone that the decoders here have been busy for ``seconds``, since they began."""
        self._connections = [one for one in self._connections if not one.failed]  # nor keep their arenas
        for connection in self._connections:
            connection.arena.decoding[connection.number, Decoding.BUSY] += seconds - self._busy
        self._busy = seconds

    def _reserve(self, size: int) -> None:
        self._reserved += size
        for connection in self._connections:
            if not connection.failed:
                connection.arena.decoding[connection.number, Decoding.MEMORY] = self._reserved
