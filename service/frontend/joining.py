"""A transport that joins two writes of the same turn of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class Joining:
    """A wrapper of a transport that sends a response's head together with its body.

    uvicorn writes head and body separately, and uvloop sends each write at once: two system calls, two segments, and a
    client that wakes twice. Here the first write waits for a second one, but no longer than until the loop's next turn.
    ``close`` is called with the transport when all is sent.
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
        """Sends ``data`` together with the waiting write, or keeps it until the loop's next turn."""
        if self._first:
            first, self._first = self._first, b""
            self._transport.write(first + data)
        else:
            self._first = data
            self._loop.call_soon(self._flush)

    def write_eof(self) -> None:
        """Sends the waiting write, then closes the sending side."""
        self._flush()
        self._transport.write_eof()

    def close(self) -> None:
        """Sends the waiting write, then closes."""
        self._flush()
        self._close(self._transport)

    def _flush(self) -> None:
        if self._first:
            first, self._first = self._first, b""
            if not self._transport.is_closing():
                self._transport.write(first)
