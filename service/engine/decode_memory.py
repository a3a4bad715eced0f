"""The memory for decoding large images, which all front-ends share.

Each front-end writes its reserved bytes into its row of every connected engine's arena, so that each arena shows the
sum. The limit is the newest engine's, since it was measured while all the others had their memory.
"""

from __future__ import annotations

import math

from service.engine.arena import Decoding, Gauge
from service.engine.connection import Connection


class DecodeMemory:
    """One front-end's view of it. Each decoder may take ``thread_memory`` bytes without a reservation."""

    def __init__(self, thread_memory: int = 0) -> None:
        self._thread_memory = thread_memory
        self._reserved = 0
        """The bytes that this front-end's images have reserved."""
        self._busy = 0.0
        self._connections: list[Connection] = []

    def __repr__(self) -> str:
        return f"<DecodeMemory {self._reserved} reserved>"

    def join(self, connection: Connection) -> None:
        """Adds the arena of a new engine."""
        self._connections = [one for one in self._connections if not one.failed] + [connection]
        connection.arena.decoding[connection.number, Decoding.MEMORY] = self._reserved

    @property
    def _newest(self) -> Connection | None:
        return next((one for one in reversed(self._connections) if not one.failed), None)

    @property
    def memory_limit(self) -> float:
        """The largest number of bytes that one image may reserve."""
        newest = self._newest
        if newest is None:
            return math.inf
        threads = float(newest.arena.decoding[:, Decoding.THREADS].sum())
        return float(newest.arena.gauges[Gauge.DECODE_MEMORY]) - threads * self._thread_memory

    def acquire(self, size: int) -> bool:
        """Reserves ``size`` bytes for decoding; False if all front-ends together would exceed the limit."""
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
        """Gives ``size`` reserved bytes back."""
        self._reserve(-size)

    def record_busy(self, seconds: float) -> None:
        """Publishes that this front-end's decoders have been busy for ``seconds`` since its start."""
        self._connections = [
            one for one in self._connections if not one.failed
        ]  # so that failed arenas are freed
        for connection in self._connections:
            connection.arena.decoding[connection.number, Decoding.BUSY] += seconds - self._busy
        self._busy = seconds

    def _reserve(self, size: int) -> None:
        self._reserved += size
        for connection in self._connections:
            if not connection.failed:
                connection.arena.decoding[connection.number, Decoding.MEMORY] = self._reserved
