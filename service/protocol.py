"""uvicorn's HTTP protocol, sending a response's head together with its body."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Protocol(HttpToolsProtocol):
    """For `uvicorn.Config(http=Protocol)`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Joining(transport, self.loop))  # type: ignore[arg-type]


class _Joining:
    """A transport that joins two writes of one turn of the event loop.

    uvicorn writes head and body separately and uvloop sends each write at once: two system calls, two
    segments, and a client that wakes twice. What no second write follows is sent in the next turn.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
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

    def close(self) -> None:
        """Sends what waits, and closes."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._first:
            first, self._first = self._first, b""
            self._transport.write(first)
