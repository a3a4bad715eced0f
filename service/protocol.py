"""uvicorn's HTTP protocol, sending a response's head together with its body, and ending with care."""

from __future__ import annotations

import asyncio
import select
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Seconds that a connection which has not said anything yet may still bring its request when the service ends.
_LAST_CHANCE = 1.0


class Protocol(HttpToolsProtocol):
    """For `uvicorn.Config(http=Protocol)`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._last = False
        super().connection_made(_Joining(transport, self.loop))  # type: ignore[arg-type]

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self._last:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """The service ends: answers what is being asked, or is about to be, and closes."""
        if self._asking() or self.transport.is_closing():
            super().shutdown()
        elif self.cycle is None or _readable(self.transport):
            self._last = True
            self.loop.call_later(_LAST_CHANCE, self._give_up)
        else:
            self.transport.close()

    def _give_up(self) -> None:
        if not self._asking():
            self.transport.close()

    def _asking(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete


def _readable(transport: asyncio.Transport) -> bool:
    """Whether something has arrived that the event loop has not read yet: closing now would reset it."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))


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
