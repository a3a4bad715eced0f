"""Timers that end with their owner."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Timers:
    """Calls functions later on the event loop, until `close`."""

    def __init__(self) -> None:
        self._pending: set[asyncio.TimerHandle] = set()
        self._closed = False

    def call_later(self, seconds: float, what: Callable[[], object]) -> None:
        """Calls ``what`` in ``seconds``."""
        if self._closed:
            return

        def run() -> None:
            self._pending.discard(timer)
            if not self._closed:
                what()

        timer = asyncio.get_running_loop().call_later(seconds, run)
        self._pending.add(timer)

    def close(self) -> None:
        """Calls nothing any more."""
        self._closed = True
        for timer in self._pending:
            timer.cancel()
