"""A front-end's application on a real socket: our protocol under uvicorn, as `service.frontend.process` runs it, a fake
engine behind it, and clients that say exactly what they are told to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from service.api.context import Context
from service.frontend import listener
from service.frontend import process as frontend
from tests.api.site import ready
from tests.engine.harness import Engine

#: Seconds. Whatever should come comes in milliseconds where nothing else runs.
PATIENCE = 30.0


def on_the_services_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Runs a coroutine function as a test on a loop of the kind that front-ends have."""

    @wraps(test)
    def run(*arguments: Any, **keywords: Any) -> None:
        with asyncio.Runner(loop_factory=frontend._loop_factory()) as runner:
            runner.run(test(*arguments, **keywords))  # type: ignore[arg-type]

    return run


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json", self
        document: dict[str, Any] = json.loads(self.body)
        assert document["status"] == self.status
        return document


@dataclass
class Wire:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter = field(repr=False)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        async with asyncio.timeout(PATIENCE):
            await self.writer.drain()

    async def answer(self) -> Answer:
        """The next response. Raises `IncompleteReadError` when the server closes instead."""
        async with asyncio.timeout(PATIENCE):
            head = await self.reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").strip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = await self.reader.readexactly(int(headers["content-length"]))
        return Answer(int(first.split()[1]), headers, body)

    async def closed(self) -> bool:
        """Whether the server closes, in the end, with nothing more said."""
        async with asyncio.timeout(PATIENCE):
            try:
                return await self.reader.read() == b""
            except ConnectionError:
                return True


@dataclass
class Place:
    engine: Engine
    context: Context
    address: tuple[str, int]
    connections: set[Any]
    """uvicorn's: what each open connection has for a protocol."""

    @property
    def idle(self) -> bool:
        return self.engine.arena.free == self.engine.arena.geometry.slots

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Wire]:
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            yield Wire(reader, writer)
        finally:
            writer.transport.abort()

    async def ask(self, data: bytes) -> Answer:
        """What a connection of its own gets for ``data``."""
        async with self.connect() as wire:
            await wire.send(data)
            return await wire.answer()


@asynccontextmanager
async def place(*, settings: dict[str, Any] | None = None, **engine: Any) -> AsyncIterator[Place]:
    """A ready service on a port of its own. ``engine`` goes to `Engine`."""
    with ready(settings, **engine) as (running, context):
        server = frontend._server(context, None)
        port = listener.bind("127.0.0.1", 0)
        serving = asyncio.create_task(server.serve(sockets=[port]))
        try:
            yield Place(running, context, port.getsockname(), server.server_state.connections)
        finally:
            for connection in list(server.server_state.connections):
                connection.transport.abort()
            server.should_exit = True
            await serving
            port.close()
