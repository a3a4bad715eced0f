"""uvicorn's HTTP protocol, with what it leaves open towards clients that are slow, endless, broken or half gone.

- A response's head is sent together with its body.
- A request's head has to be there within `HEAD_SECONDS` of its first byte and within about `HEAD_BYTES`; a new
  connection may be silent for `SILENT_SECONDS`. A body has until the request's deadline, which runs from
  the first byte as well (``scope["began"]``).
- What is no HTTP is answered by a problem document, like every other error; whoever was asked before it, first.
- After an answer that did not wait for its request's body, the rest of that is thrown away, for `LINGER_SECONDS`
  at most: long enough for the client to read the answer, and no way to go on for ever.
- Who does not read what was answered is cut off after `STALLED_SECONDS`.
- A client that closes its sending half is taken for gone, since one that closes altogether looks the same; only
  what costs nothing (GET) is still answered.
- When the service ends, what is being asked, or is about to be, is answered.
"""

from __future__ import annotations

import asyncio
import json
import logging
import select
import time
from asyncio import TimerHandle
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.api.errors import problem, status_of
from service.api.exchange import new_id
from service.errors import HeadersTooLarge, MalformedRequest, RequestTimeout, ServiceError

log = logging.getLogger(__name__)

#: Seconds from the first byte of a request's head to its last: two kilobytes over the worst of networks.
HEAD_SECONDS = 10.0
#: Seconds that a new connection may be silent. Browsers open some ahead of need; load balancers keep pools.
SILENT_SECONDS = 75.0
#: Bytes of request line and headers, twice what nginx allows. One read of the socket may go beyond.
HEAD_BYTES = 64 * 1024
#: Seconds for a client to stop sending and to read the answer that it got early.
LINGER_SECONDS = 5.0
#: Seconds that a client may leave an answer in our buffer.
STALLED_SECONDS = 30.0
#: Seconds that a connection which has not said anything yet may still bring its request when the service ends.
_LAST_CHANCE = 1.0
#: Answered although the client's sending half is closed.
_CHEAP = ("GET", "HEAD")


class Protocol(HttpToolsProtocol):
    """For `uvicorn.Config(http=Protocol)`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._last = False
        self._deaf = False  # whatever still comes is thrown away
        self._in_head = False
        self._head_bytes = 0
        self._began = 0.0
        self._stalled: TimerHandle | None = None
        self._clock: TimerHandle | None = self.loop.call_later(SILENT_SECONDS, transport.abort)
        """Of what the client owes us first: any byte, the rest of a head, the rest of a body nobody waits for."""
        super().connection_made(_Joining(transport, self.loop, self._close))  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        self.resume_writing()
        super().connection_lost(exc)

    # What arrives

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._unset_keepalive_if_required()
        if self._in_head:
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._refuse(MalformedRequest("this is not HTTP/1.1 as RFC 9112 has it"))
        except httptools.HttpParserUpgrade:
            log.debug("an upgrade was asked for that is not offered")
        else:
            self._supervise()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._began = time.monotonic()
        self._in_head = True
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else it is a trailer, of which there may be any number
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_clock()
        super().on_headers_complete()
        self.scope["began"] = self._began  # type: ignore[typeddict-unknown-key]
        if self._last:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        if self.cycle.response_complete:
            self._stop_clock()  # the rest of a body that nobody waited for
            self.cycle.more_body = False
        super().on_message_complete()

    def eof_received(self) -> bool:  # type: ignore[override]
        if self._deaf or not self._asking() or self.cycle.more_body or self.scheme == "https":
            return False
        if self.scope["method"] not in _CHEAP:
            return False
        self.cycle.keep_alive = False
        return True

    def _supervise(self) -> None:
        """Between two reads: the clock runs while a head is incomplete, and while nothing is asked."""
        if self._in_head:
            if self._head_bytes > HEAD_BYTES:
                self._refuse(HeadersTooLarge(f"request line and headers are more than {HEAD_BYTES:,} bytes"))
            elif not self._head_bytes or self._clock is None:
                self._start_clock(HEAD_SECONDS, self._too_slow)
        elif not self._asking() and self._clock is None and not self.transport.is_closing():
            # Empty lines between requests. The timer was stopped for them.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _too_slow(self) -> None:
        self._refuse(
            RequestTimeout(f"the request's head was not there {HEAD_SECONDS:g} s after its first byte")
        )

    def _refuse(self, error: ServiceError) -> None:
        """Answers what is no request. Requests that came whole before it are answered instead, then it ends."""
        self._in_head, self._deaf = False, True
        self._stop_clock()
        if self._asking() and not self.cycle.more_body:
            self.cycle.keep_alive = False
            return
        if self._asking():
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not self._asking() or not self.cycle.response_started:
            self.transport.write(_document(error))
        self._linger()

    # What is answered

    def on_response_complete(self) -> None:
        if self._deaf and not self.pipeline:
            self.flow.resume_reading()
            return
        super().on_response_complete()
        if self._owed() and not self.pipeline:
            self._start_clock(LINGER_SECONDS, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        super().resume_writing()

    def _owed(self) -> bool:
        """Whether the last request was answered before its body had come."""
        return self.cycle is not None and self.cycle.response_complete and self.cycle.more_body

    def _close(self, transport: asyncio.Transport) -> None:
        """uvicorn closes. Into the face of a client that still sends, this would be a reset, and no answer."""
        if self._owed() and not self._deaf:
            self._linger()
            return
        transport.close()
        if transport.get_write_buffer_size():
            self._start_clock(STALLED_SECONDS, transport.abort)

    def _linger(self) -> None:
        self._deaf = True
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._start_clock(LINGER_SECONDS, self.transport.abort)

    def _start_clock(self, seconds: float, ring: Callable[[], None]) -> None:
        self._stop_clock()
        self._clock = self.loop.call_later(seconds, ring)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    # The service ends

    def shutdown(self) -> None:
        """Answers what is being asked, or is about to be, and closes."""
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


def _document(error: ServiceError) -> bytes:
    """The whole response to something that has no request."""
    status, request_id = status_of(error), new_id()
    body = json.dumps(problem(error, request_id)).encode()
    head = (
        f"content-type: application/problem+json\r\ncontent-length: {len(body)}\r\n"
        f"x-request-id: {request_id}\r\nconnection: close\r\n\r\n"
    )
    return STATUS_LINE[status] + head.encode() + body


def _readable(transport: asyncio.Transport) -> bool:
    """Whether something has arrived that the event loop has not read yet: closing now would reset it."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))


class _Joining:
    """A transport that joins two writes of one turn of the event loop.

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
