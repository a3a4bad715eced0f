"""HTTP/1.1 on one connection, one request after the other: uvicorn's protocol and the cases that it leaves open.

    Waiting ── a whole head ──▶ body ──▶ whole ── answered, and the kernel has taken the answer ──▶ the next one

- One request is worked on at a time. Bytes that follow it stay unread, or unparsed if they came in the same read.
- An offer to upgrade, and CONNECT, are ignored: the request is handled as an ordinary one, its body included
  (RFC 9110, 7.8).
- A response's head is sent together with its body.
- The limits of a head are in `service.frontend.connections`, its meaning is in `service.api.head`. A body may come
  until the request's deadline, which counts from the first byte of the head (``scope["began"]``).
- Bytes that are no HTTP are answered by a problem document, like every other error. A request before them is answered
  first.
- An answer may come before its request's whole body. The rest of the body is then thrown away, for `LINGER_SECONDS` at
  most, so that the client can read the answer but cannot go on for ever.
- A client that does not read its answer is cut off after `STALLED_SECONDS` without progress.
- A client that closes its sending half after a whole request waits for the answer (RFC 9112, 9.6). A client that is
  gone looks the same until a write fails, so its request may cost a forward pass.
"""

from __future__ import annotations

import asyncio
import json
import time
from asyncio import TimerHandle
from functools import partial

import httptools
from uvicorn._types import ASGI3Application, ASGISendEvent
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.api.errors import headers_of, problem, status_of
from service.api.head import examine, refusal
from service.api.request_state import new_id
from service.errors import HeadersTooLarge, MalformedRequest, ServiceError
from service.frontend.connections import END, MAX_REQUEST_HEAD_BYTES, Connections, readable
from service.frontend.joining import Joining

#: Bytes of framing allowed for each byte of a body, beyond `MAX_REQUEST_HEAD_BYTES`: chunks of one byte need five, and
#: extensions some more. A larger share means trailers or chunk extensions, which no limit of the body counts.
_FRAMING = 16
#: Seconds for a client to stop sending and to read an answer that came before its whole body.
LINGER_SECONDS = 5.0
#: Seconds for which an answer may stay in this process's buffer without progress.
STALLED_SECONDS = 30.0
#: Marks of the write buffer in bytes: with one byte in it, the kernel has not taken the whole answer.
_NOT_TAKEN, _TAKEN = 1, 0


class Protocol(HttpToolsProtocol):
    """The protocol of a connection with a request; see the head of this file. `Connections` makes and retires it."""

    connections: Connections  # type: ignore[assignment]
    began = 0.0
    """The arrival of the first byte of the next head, in seconds of the monotonic clock."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.bare_transport = transport
        self._discarding = False  # True: all further bytes are thrown away
        self._in_head = False
        self._connects = False  # True while the head of a CONNECT is parsed a second time, as that of a POST
        self._wants_no_content = False
        self._body_complete = True  # the request's whole body has come
        self._body_left: int | None = 0  # bytes of the body still to come; None for a body in chunks
        self._chunk_tail = b""  # the last bytes of a body in chunks
        self._pipelined = b""  # bytes that follow a whole request
        self._framing = 0  # bytes of framing so far, less those that the body's content allows (`_FRAMING`)
        self._linger_timer: TimerHandle | None = None
        """The timer of the rest of a body whose request is answered already."""
        self._stall_timer: TimerHandle | None = None
        self._unsent = 0
        transport.set_write_buffer_limits(high=_NOT_TAKEN, low=_TAKEN)
        super().connection_made(Joining(transport, self.loop, self._close))  # type: ignore[arg-type]
        self.flow: _Flow = _Flow(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._discarding = True
        self._stop_linger_timer()
        self.resume_writing()
        self._take_pipelined()
        super().connection_lost(exc)

    # What arrives

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            return
        if not self._body_complete:
            self._receive_body(data)
        elif self._busy():
            self._hold_pipelined(data)
        else:
            self.connections.mark_active(self)
            self._begin_request(data)

    def _begin_request(self, data: bytes) -> None:
        """Begins the next request with ``data``: the first one, or one after an answered one."""
        data = data.lstrip(b"\r\n")
        end = data.find(END)
        if self.cycle is not None and not 0 <= end <= MAX_REQUEST_HEAD_BYTES:
            self.connections.make_waiting(self, data)
            return
        before, self.began = self.cycle, self.began or time.monotonic()
        head = data[: end + len(END)] if end >= 0 else data
        self._feed_parser(head, head=True)
        if self.cycle is before and not self._discarding:
            self.refuse(MalformedRequest("this is not the head of a request"))
        elif len(data) > len(head):
            self.data_received(data[len(head) :])

    def _receive_body(self, data: bytes) -> None:
        """Feeds the parser only bytes of this request's body."""
        at = 0
        while at < len(data) and not self._body_complete and not self._discarding:
            if self._body_left is None:
                end = self._end_of_chunks(data, at)
            else:
                end = min(at + self._body_left, len(data))
                self._body_left -= end - at
            self._feed_parser(memoryview(data)[at:end])
            at = end
        if at < len(data):
            self.data_received(data[at:])
        else:
            self._begin_pipelined()

    def _end_of_chunks(self, data: bytes, at: int) -> int:
        """The end of the part of ``data`` that may be parsed: the next `END`, since a body in chunks ends with one."""
        seam = self._chunk_tail + data[at : at + len(END) - 1]
        found = seam.find(END)
        if found >= 0:
            end = at + found + len(END) - len(self._chunk_tail)
        else:
            found = data.find(END, at)
            end = found + len(END) if found >= 0 else len(data)
        self._chunk_tail = (self._chunk_tail + data[max(at, end - len(END) + 1) : end])[1 - len(END) :]
        return end

    def _feed_parser(self, piece: bytes | memoryview, *, head: bool = False) -> None:
        self._framing += len(piece)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            self._feed_without_upgrade()
        except httptools.HttpParserError as error:
            ours = error.__context__
            if not isinstance(ours, ServiceError):
                ours = refusal(bytes(piece) if head else b"")
            self.refuse(ours)
        else:
            if self._framing > MAX_REQUEST_HEAD_BYTES and self._unanswered() and self.cycle.more_body:
                self.refuse(HeadersTooLarge("trailers or chunk extensions are far more than the body"))

    def _feed_without_upgrade(self) -> None:
        """Feeds the head without its offer to upgrade to a new parser, since this one would skip the body."""
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
        self._feed_parser(b"\r\n".join(lines) + END)
        self._connects = False

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._body_complete = True, False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # trailers come here too and are dropped, since their number has no limit
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self.parser.should_upgrade():
            return
        self._stop_linger_timer()
        method = b"CONNECT" if self._connects else self.parser.get_method()
        self._wants_no_content = method == b"HEAD"
        head = examine(method, self.parser.get_http_version(), self.url, self.headers)
        self.url, self.expect_100_continue = head.target, head.expects
        self._body_left, self._chunk_tail, self._framing = head.length, b"", 0
        if head.host is not None:  # RFC 9112, 3.2.2: the host of an absolute target overrides the header
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
        self._body_complete = True
        if self.cycle.response_complete:
            self._stop_linger_timer()  # the rest of the body has come after the answer
            self.cycle.more_body = False
        super().on_message_complete()

    def eof_received(self) -> bool:  # type: ignore[override]
        if self._discarding or not self._unanswered() or not self._body_complete or self.scheme == "https":
            return False
        self.cycle.keep_alive = False
        return True

    def _hold_pipelined(self, data: bytes) -> None:
        """Keeps bytes that follow the present request. Nothing more is read until that is answered."""
        if self.connections.intake.take(len(data)):
            self._pipelined += data
            self.flow.hold()
            return
        self._discarding = True  # the present request becomes the last one; what follows it needs no answer
        if self._unanswered():
            self.cycle.keep_alive = False
        else:
            self.transport.close()

    def _take_pipelined(self) -> bytes:
        rest, self._pipelined = self._pipelined, b""
        self.connections.intake.give(len(rest))
        return rest

    def _begin_pipelined(self) -> None:
        """Begins the next request if the last one is complete and the kernel has taken its answer."""
        if self._discarding or not self._body_complete or self._busy() or self.transport.is_closing():
            return
        rest = self._take_pipelined()
        self.flow.release()
        if rest:
            self._begin_request(rest)
        else:
            self.connections.mark_idle(self)

    def refuse(self, error: ServiceError) -> None:
        """Answers bytes that are no request with ``error``, and ends the connection.

        If a whole request came before them, that is answered instead.
        """
        self._in_head, self._discarding = False, True
        self._stop_linger_timer()
        if self._unanswered() and not self.cycle.more_body:
            self.cycle.keep_alive = False
            return
        if self._unanswered():
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not self._unanswered() or not self.cycle.response_started:
            self.transport.write(self._document(error))
        self._linger()

    def _document(self, error: ServiceError) -> bytes:
        """The bytes of the whole response to bytes that are no request."""
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
        """Ends the connection after an answer in place of 100 (Continue).

        The client may then send the body or not (RFC 9110, 10.1.1), so the next bytes could be a body or a request.
        """
        if cycle.waiting_for_100_continue and cycle.more_body:
            cycle.keep_alive = False
        await RequestResponseCycle.send(cycle, message)

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self._discarding or self._answered_early():
            self.flow.release()
        if self._answered_early() and not self._discarding:
            self._start_linger_timer()
        self._begin_pipelined()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall_timer is None:
            self._start_stall_timer()

    def _start_stall_timer(self) -> None:
        self._unsent = self.bare_transport.get_write_buffer_size()
        self._stall_timer = self.loop.call_later(STALLED_SECONDS, self._check_progress)

    def _check_progress(self) -> None:
        if self.bare_transport.get_write_buffer_size() < self._unsent:
            self._start_stall_timer()
        else:
            self.transport.abort()

    def resume_writing(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        super().resume_writing()
        if self.cycle is not None:
            self._begin_pipelined()

    def _answered_early(self) -> bool:
        """True if the last request was answered before its whole body had come."""
        return self.cycle is not None and self.cycle.response_complete and self.cycle.more_body

    def _close(self, transport: asyncio.Transport) -> None:
        """Closes for uvicorn. While the client still sends, closing at once would reset the connection."""
        if self._answered_early() and not self._discarding:
            self._linger()
        else:
            transport.close()

    def _linger(self) -> None:
        self._discarding = True
        self._take_pipelined()
        self.flow.release()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._start_linger_timer()

    def _start_linger_timer(self) -> None:
        self._stop_linger_timer()
        self._linger_timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _stop_linger_timer(self) -> None:
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None

    # The end

    def close(self) -> None:
        """Ends a connection that has no request."""
        self.connections.discard(self)
        self.transport.close()

    def retire(self) -> asyncio.Transport:
        """Gives up all objects of a request and returns the transport for another protocol."""
        self.parser = self.cycle = self.scope = None  # type: ignore[assignment]
        self.transport = self.flow = None  # type: ignore[assignment]
        return self.bare_transport

    def shutdown(self) -> None:
        """Answers the present request, or one that is about to come, and closes."""
        if self._unanswered() or self.transport.is_closing() or self._pipelined:
            super().shutdown()
        elif self._body_complete and readable(self.bare_transport):
            self.connections.make_waiting(self)
        else:
            self.transport.close()

    def _unanswered(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _busy(self) -> bool:
        """True while a request is worked on, or its answer is not yet taken by the kernel."""
        return self._unanswered() or self.flow.write_paused


class _Flow(FlowControl):
    """uvicorn's flow control with a lock, since uvicorn resumes reading whenever the application receives."""

    _held = False

    def hold(self) -> None:
        """Stops reading until `release`."""
        self._held = True
        self.pause_reading()

    def release(self) -> None:
        self._held = False
        self.resume_reading()

    def resume_reading(self) -> None:
        if not self._held:
            super().resume_reading()
