"""Our protocol without a socket: an application that notes what it is asked, and bytes that fall as a test wants."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import uvicorn
from starlette.types import Message, Receive, Scope, Send
from uvicorn.server import ServerState

from service.api.intake import Intake
from service.frontend.connections import Connections
from service.frontend.protocol import Protocol
from tests.loops import until

#: Bytes; far more than any test sends.
_PLENTY = 1 << 30


class Pipe(asyncio.Transport):
    """A transport whose client is a test. ``takes`` False stands for a client that reads nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.writes = 0
        self.waiting = b""
        self.paused = False
        self.takes = True
        self.protocol: Any = None
        self.closed = self.eof = False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.writes += 1
        if self.takes:
            self.written += data
            return
        if not self.waiting:
            self.protocol.pause_writing()
        self.waiting += data

    def take(self) -> None:
        """The client reads again."""
        self.takes, self.written, self.waiting = True, self.written + self.waiting, b""
        self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return len(self.waiting)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close


@dataclass
class Fed:
    """One connection. To be made on an event loop."""

    answer: int = 2
    """Bytes of every answer."""
    connections: Connections = field(default_factory=lambda: Connections(100, Intake(_PLENTY)))
    asked: list[tuple[str, str, bytes]] = field(default_factory=list)
    """Method, path and body of what the application was asked."""
    working: int = 0
    most: int = 0
    """How many requests it was working on at a time."""

    def __post_init__(self) -> None:
        config = uvicorn.Config(
            self._app, interface="asgi3", ws="none", lifespan="off", log_config=None, proxy_headers=False
        )
        config.load()
        state = ServerState()
        state.connections = self.connections  # type: ignore[assignment]
        self.connections.make = partial(Protocol, config=config, server_state=state, app_state={})
        self.pipe = Pipe()
        self.pipe.protocol = self.connections.wait()
        self.pipe.protocol.connection_made(self.pipe)

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.working += 1
        self.most = max(self.most, self.working)
        body, more = b"", True
        while more:
            message: Message = await receive()
            assert message["type"] == "http.request"
            body, more = body + message["body"], message["more_body"]
        self.asked.append((scope["method"], scope["path"], body))
        self.working -= 1
        headers = [(b"content-length", str(self.answer).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * self.answer})

    async def feed(self, *pieces: bytes) -> None:
        """Each piece in a read of its own, as soon as anything is read."""
        for piece in pieces:
            await until(lambda: not self.pipe.paused or self.pipe.closed)
            if self.pipe.closed:
                return
            self.pipe.protocol.data_received(piece)
            await asyncio.sleep(0)

    @property
    def statuses(self) -> list[int]:
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", self.pipe.written)]
