"""One request after the other on a connection: uvicorn's HTTP protocol, with what it leaves open.

    Waiting ── a whole head ──▶ body ──▶ whole ── answered, and the kernel has taken the answer ──▶ the next one

- One request is worked on at a time. What its client sends behind it stays unread, or, as far as it came in the same
  read, unparsed.
- An offer to upgrade, and CONNECT, are passed over: what comes is an ordinary request, body included (9110 7.8).
- A response's head is sent together with its body.
- A head has its limits in `service.frontend.connections`, and its meaning in `service.api.head`. A body has until the
  request's deadline, which runs from the first byte of the head (``scope["began"]``).
- What is no HTTP is answered by a problem document, like every other error; whoever was asked before it, first.
- After an answer that did not wait for its request's body, the rest of that is thrown away, for `LINGER_SECONDS`
  at most: long enough for the client to read the answer, and no way to go on for ever.
- Who does not read what was answered is cut off after `STALLED_SECONDS` without progress.
- A client that closes its sending half behind a whole request waits for the answer (9112 9.6). One that has gone
  altogether looks the same, until a write fails; so its request may cost a forward pass.
"""

from __future__ import annotations

import asyncio
import json
import time
from asyncio import TimerHandle
from collections.abc import Callable
from functools import partial

import httptools
from uvicorn._types import ASGI3Application, ASGISendEvent
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.api.errors import headers_of, problem, status_of
from service.api.exchange import new_id
from service.api.head import examine, refusal
from service.errors import HeadersTooLarge, MalformedRequest, ServiceError
from service.frontend.connections import END, HEAD_BYTES, Connections, readable
from service.frontend.joining import Joining

#: Bytes of framing for each byte of a body, beyond `HEAD_BYTES`: chunks of one byte need five, some more with
#: extensions. What is more are trailers and chunk extensions, which no limit of the body sees.
_FRAMING = 16
#: Seconds for a client to stop sending and to read the answer that it got early.
LINGER_SECONDS = 5.0
#: Seconds that a client may leave an answer in our buffer without taking a byte of it.
STALLED_SECONDS = 30.0
#: Bytes in our buffer from which on the kernel has not taken the answer, and down to which it has.
_NOT_TAKEN, _TAKEN = 1, 0


class Protocol(HttpToolsProtocol):
    """For `uvicorn.Config(http=Protocol)`. Made when a connection has something to say, see `Connections`."""

    connections: Connections  # type: ignore[assignment]
    began = 0.0
    """When the first byte of the head came that is shown next, on the monotonic clock."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.bare_transport = transport
        self._deaf = False  # whatever still comes is thrown away
        self._in_head = False
        self._connects = False  # the head that is parsed again, as another method's, is that of CONNECT
        self._wants_no_content = False
        self._whole = True  # nothing of a request's body is outstanding
        self._left: int | None = 0  # bytes of it; None while it comes in chunks
        self._tail = b""  # the last bytes of what came in chunks
        self._rest = b""  # what came behind a whole request
        self._framing = 0  # bytes of the body that were no content, less what its content pays for
        self._clock: TimerHandle | None = None
        """Of what the client owes us: the rest of a body that nobody waits for."""
        self._stalled: TimerHandle | None = None
        self._untaken = 0
        transport.set_write_buffer_limits(high=_NOT_TAKEN, low=_TAKEN)
        super().connection_made(Joining(transport, self.loop, self._close))  # type: ignore[arg-type]
        self.flow: _Flow = _Flow(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._deaf = True
        self._stop_clock()
        self.resume_writing()
        self._drop_rest()
        super().connection_lost(exc)

    # What arrives

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if not self._whole:
            self._body_came(data)
        elif self._busy():
            self._keep(data)
        else:
            self.connections.wake(self)
            self._next(data)

    def _next(self, data: bytes) -> None:
        """``data`` follows a request that was answered, or is the first."""
        data = data.lstrip(b"\r\n")
        end = data.find(END)
        if self.cycle is not None and not 0 <= end <= HEAD_BYTES:
            self.connections.put_aside(self, data)
            return
        before, self.began = self.cycle, self.began or time.monotonic()
        head = data[: end + len(END)] if end >= 0 else data
        self._feed(head, head=True)
        if self.cycle is before and not self._deaf:
            self.refuse(MalformedRequest("this is not the head of a request"))
        elif len(data) > len(head):
            self.data_received(data[len(head) :])

    def _body_came(self, data: bytes) -> None:
        """Shows the parser no more than belongs to this request."""
        at = 0
        while at < len(data) and not self._whole and not self._deaf:
            end = self._chunks_end(data, at) if self._left is None else min(at + self._left, len(data))
            if self._left is not None:
                self._left -= end - at
            self._feed(memoryview(data)[at:end])
            at = end
        if at < len(data):
            self.data_received(data[at:])
        else:
            self._go_on()

    def _chunks_end(self, data: bytes, at: int) -> int:
        """How far ``data`` may be parsed: a body in chunks ends with `END`, wherever else that may be."""
        seam = self._tail + data[at : at + len(END) - 1]
        found = seam.find(END)
        if found >= 0:
            end = at + found + len(END) - len(self._tail)
        else:
            found = data.find(END, at)
            end = found + len(END) if found >= 0 else len(data)
        self._tail = (self._tail + data[max(at, end - len(END) + 1) : end])[1 - len(END) :]
        return end

    def _feed(self, piece: bytes | memoryview, *, head: bool = False) -> None:
        self._framing += len(piece)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            self._show_again()
        except httptools.HttpParserError as error:
            ours = error.__context__
            if not isinstance(ours, ServiceError):
                ours = refusal(bytes(piece) if head else b"")
            self.refuse(ours)
        else:
            if self._framing > HEAD_BYTES and self._asking() and self.cycle.more_body:
                self.refuse(HeadersTooLarge("trailers or chunk extensions are far more than the body"))

    def _show_again(self) -> None:
        """The parser skips the body of a request that offers an upgrade: another is shown the head without that."""
        self._connects = self.parser.get_method() == b"CONNECT"
        line = b"POST /" if self._connects else self.parser.get_method() + b" " + self.url
        lines = [line + b" HTTP/" + self.parser.get_http_version().encode()]
        for name, value in self.headers:
            if name == b"connection":
                options = [option for option in value.split(b",") if option.strip().lower() != b"upgrade"]
                value = b",".join(options)
            if name != b"upgrade":
                lines.append(name + b": " + value)
        self.parser = httptools.HttpRequestParser(self)
        self._feed(b"\r\n".join(lines) + END)
        self._connects = False

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._whole = True, False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else it is a trailer, of which there may be any number
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self.parser.should_upgrade():
            return
        self._stop_clock()
        method = b"CONNECT" if self._connects else self.parser.get_method()
        self._wants_no_content = method == b"HEAD"
        head = examine(method, self.parser.get_http_version(), self.url, self.headers)
        self.url, self.expect_100_continue = head.target, head.expects
        self._left, self._tail, self._framing = head.length, b"", 0
        if head.host is not None:  # 9112 3.2.2: it counts, and not what the header says
            self.headers[:] = [
                (name, head.host if name == b"host" else value) for name, value in self.headers
            ]
        super().on_headers_complete()
        self.scope["method"] = method.decode()
        self.scope["began"], self.began = self.began, 0.0  # type: ignore[typeddict-unknown-key]
        if self.connections.ending:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._framing -= (1 + _FRAMING) * len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._whole = True
        if self.cycle.response_complete:
            self._stop_clock()  # the rest of a body that nobody waited for
            self.cycle.more_body = False
        super().on_message_complete()

    def eof_received(self) -> bool:  # type: ignore[override]
        if self._deaf or not self._asking() or not self._whole or self.scheme == "https":
            return False
        self.cycle.keep_alive = False
        return True

    def _keep(self, data: bytes) -> None:
        """For when its predecessor is answered. Nothing more is read until then."""
        if self.connections.intake.take(len(data)):
            self._rest += data
            self.flow.hold()
            return
        self._deaf = True  # no answer is owed to what follows the last one of a connection
        if self._asking():
            self.cycle.keep_alive = False
        else:
            self.transport.close()

    def _drop_rest(self) -> bytes:
        rest, self._rest = self._rest, b""
        self.connections.intake.give(len(rest))
        return rest

    def _go_on(self) -> None:
        """With the next request, once the last one is done with and the kernel has taken its answer."""
        if self._deaf or not self._whole or self._busy() or self.transport.is_closing():
            return
        rest = self._drop_rest()
        self.flow.release()
        if rest:
            self._next(rest)
        else:
            self.connections.rest(self)

    def refuse(self, error: ServiceError) -> None:
        """Answers what is no request. A request that came whole before it is answered instead, then it ends."""
        self._in_head, self._deaf = False, True
        self._stop_clock()
        if self._asking() and not self.cycle.more_body:
            self.cycle.keep_alive = False
            return
        if self._asking():
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not self._asking() or not self.cycle.response_started:
            self.transport.write(self._document(error))
        self._linger()

    def _document(self, error: ServiceError) -> bytes:
        """The whole response to something that is no request."""
        status, request_id = status_of(error), new_id()
        body = json.dumps(problem(error, request_id)).encode()
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", request_id.encode()),
            *((name.lower().encode(), value.encode()) for name, value in headers_of(error).items()),
            (b"connection", b"close"),
        ]
        head = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        return STATUS_LINE[status] + head + b"\r\n" + (b"" if self._wants_no_content else body)

    # What is answered

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if cycle.waiting_for_100_continue:
            cycle.send = partial(self._send_unasked, cycle)  # type: ignore[method-assign]
        super()._start_asgi_task(cycle, app)

    async def _send_unasked(self, cycle: RequestResponseCycle, message: ASGISendEvent) -> None:
        """After an answer in place of 100, the client may send the body or not (9110 10.1.1), so that nobody could
        tell whether what comes is a body or a request: such a connection ends."""
        if cycle.waiting_for_100_continue and cycle.more_body:
            cycle.keep_alive = False
        await RequestResponseCycle.send(cycle, message)

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self._deaf or self._owed():
            self.flow.release()
        if self._owed() and not self._deaf:
            self._start_clock(LINGER_SECONDS, self.transport.abort)
        self._go_on()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._watch_reader()

    def _watch_reader(self) -> None:
        self._untaken = self.bare_transport.get_write_buffer_size()
        self._stalled = self.loop.call_later(STALLED_SECONDS, self._look_at_reader)

    def _look_at_reader(self) -> None:
        if self.bare_transport.get_write_buffer_size() < self._untaken:
            self._watch_reader()
        else:
            self.transport.abort()

    def resume_writing(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        super().resume_writing()
        if self.cycle is not None:
            self._go_on()

    def _owed(self) -> bool:
        """Whether the last request was answered before its body had come."""
        return self.cycle is not None and self.cycle.response_complete and self.cycle.more_body

    def _close(self, transport: asyncio.Transport) -> None:
        """uvicorn closes. Into the face of a client that still sends, this would be a reset, and no answer."""
        if self._owed() and not self._deaf:
            self._linger()
        else:
            transport.close()

    def _linger(self) -> None:
        self._deaf = True
        self._drop_rest()
        self.flow.release()
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

    # The end

    def close(self) -> None:
        """Ends a connection that rests."""
        self.connections.discard(self)
        self.transport.close()

    def retire(self) -> asyncio.Transport:
        """The connection, for whoever takes over; nothing here holds anything any more."""
        self.parser = self.cycle = self.scope = None  # type: ignore[assignment]
        self.transport = self.flow = None  # type: ignore[assignment]
        return self.bare_transport

    def shutdown(self) -> None:
        """Answers what is being asked, or is about to be, and closes."""
        if self._asking() or self.transport.is_closing() or self._rest:
            super().shutdown()
        elif self._whole and readable(self.bare_transport):
            self.connections.put_aside(self)
        else:
            self.transport.close()

    def _asking(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _busy(self) -> bool:
        """Whether a request is being worked on, or its answer waits for the kernel."""
        return self._asking() or self.flow.write_paused


class _Flow(FlowControl):
    """uvicorn's, which resumes reading whenever the application looks whether its client is there."""

    _held = False

    def hold(self) -> None:
        """Reads nothing until `release`."""
        self._held = True
        self.pause_reading()

    def release(self) -> None:
        self._held = False
        self.resume_reading()

    def resume_reading(self) -> None:
        if not self._held:
            super().resume_reading()
