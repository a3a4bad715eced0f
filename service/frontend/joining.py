"""A transport that joins two writes of one turn of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class Joining:
    """Around a transport.

    uvicorn writes head and body separately and uvloop sends each write at once: two system calls, two
    segments, and a client that wakes twice. What no second write follows is sent in the next turn.
    ``close`` is told what to close when all is sent.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        close: Callable[[asyncio.Transport], None],
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._close = close
        self._first = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Sends ``data`` with what was written before it, or after this turn of the loop."""
        if self._first:
            first, self._first = self._first, b""
            self._transport.write(first + data)
        else:
            self._first = data
            self._loop.call_soon(self._flush)

    def write_eof(self) -> None:
        """Sends what waits, and that nothing follows."""
        self._flush()
        self._transport.write_eof()

    def close(self) -> None:
        """Sends what waits, and closes."""
        self._flush()
        self._close(self._transport)

    def _flush(self) -> None:
        if self._first:
            first, self._first = self._first, b""
            if not self._transport.is_closing():
                self._transport.write(first)
