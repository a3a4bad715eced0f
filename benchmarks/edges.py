"""Measures three parts of the HTTP side: the short way of `POST /predict`, head and body in one write, accepting.

    python -m benchmarks.edges [--turns 9] [--requests 300]

CPU of the event loop's thread for a request, with and without the part, in turns in one process; the least of all
turns, since other work on the machine only adds. The first row has no sockets: the application with a fake model. The
others are our protocol under uvicorn on a real socket, with an application that answers 900 bytes; the third has a new
connection for each request, accepted by `service.frontend.accepting` and by the event loop's own server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import uvicorn
from starlette.types import Message, Receive, Scope, Send

from benchmarks import report
from service.api import shortcut
from service.api.app import create_app
from service.api.intake import Intake
from service.frontend import process, protocol
from service.frontend.connections import Connections
from tests.api.site import ready
from tests.pictures import encode, picture

_BODY = b"x" * 900
_REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
_CLOSING = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
_HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(_BODY)).encode())]


def row(part: str, turns: int, seconds: Callable[[], float], without: Callable[[], Any]) -> dict[str, Any]:
    """``seconds`` a request, as it is and inside ``without()``, the least of ``turns`` each."""
    best = {"with": float("inf"), "without": float("inf")}
    for _ in range(turns):
        best["with"] = min(best["with"], seconds())
        with without():
            best["without"] = min(best["without"], seconds())
    micros = {f"{name}, us": round(1e6 * value, 1) for name, value in best.items()}
    return {"part": part, **micros, "with/without": round(best["with"] / best["without"], 3)}


def short_way(turns: int, requests: int) -> dict[str, Any]:
    """`POST /predict` through `service.api.shortcut` and through FastAPI."""
    photo = encode(picture(), "JPEG")
    with asyncio.Runner() as runner, _application(runner) as app:

        async def ask() -> None:
            body: list[Message] = [{"type": "http.request", "body": photo, "more_body": False}]
            sent: list[Message] = []

            async def receive() -> Message:
                return body.pop() if body else await asyncio.get_running_loop().create_future()

            async def send(message: Message) -> None:
                sent.append(message)

            headers = [(b"content-type", b"image/jpeg"), (b"content-length", str(len(photo)).encode())]
            scope: Scope = {"type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict"}
            scope.update(http_version="1.1", query_string=b"", headers=headers, client=("::1", 1))
            await app(scope, receive, send)
            assert sent[0]["status"] == 200, sent

        async def many() -> float:
            began = time.thread_time()
            for _ in range(requests):
                await ask()
            return (time.thread_time() - began) / requests

        never = re.compile(rb"(?!)")
        return row(
            "short way of /predict",
            turns,
            lambda: runner.run(many()),
            lambda: patch.object(shortcut, "PLAIN", never),
        )


@contextlib.contextmanager
def _application(runner: asyncio.Runner) -> Iterator[Any]:
    """The application in front of a fake engine, both ended with the block."""
    service = ready(None)

    async def begin() -> Any:
        return create_app(service.__enter__()[1])

    async def end() -> None:
        service.__exit__(None, None, None)

    app = runner.run(begin())
    try:
        yield app
    finally:
        runner.run(end())


def one_write(turns: int, requests: int) -> dict[str, Any]:
    """An answer's head and body through `service.frontend.joining`, and as uvicorn writes them."""
    with _server() as (address, cpu):

        def seconds() -> float:
            with socket.create_connection(address) as client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                began = cpu()
                for _ in range(requests):
                    client.sendall(_REQUEST)
                    got = b""
                    while not got.endswith(_BODY):
                        got += client.recv(65536)
                return (cpu() - began) / requests

        return row(
            "head and body in one write", turns, seconds, lambda: patch.object(protocol, "Joining", _Apart)
        )


def accepting(turns: int, requests: int) -> dict[str, Any]:
    """A request over a connection of its own, accepted by `Acceptor` and by the loop's own server."""

    def seconds() -> float:
        with _server() as (address, cpu):
            _ask_once(address)
            began = cpu()
            for _ in range(requests):
                _ask_once(address)
            return (cpu() - began) / requests

    return row(
        "a connection's own request", turns, seconds, lambda: patch.object(process, "Acceptor", _LoopsServer)
    )


def _ask_once(address: tuple[str, int]) -> None:
    with socket.create_connection(address) as client:
        client.sendall(_CLOSING)
        while client.recv(65536):
            pass


class _LoopsServer:
    """In place of `Acceptor`: the event loop accepts until no connection is left."""

    def __init__(self, listener: socket.socket, connections: Connections, *_: object) -> None:
        self._loop = asyncio.get_running_loop()
        self._begun = self._loop.create_task(self._loop.create_server(connections.wait, sock=listener))

    def start(self) -> None:
        """Has begun already."""

    def close(self) -> None:
        self._begun.result().close()

    async def settle(self) -> None:
        """Does nothing: `Connections` knows every connection."""


class _Apart:
    """In place of `Joining`: every write at once."""

    def __init__(self, transport: Any, loop: object, close: Callable[[Any], None]) -> None:
        self._transport, self._close = transport, close

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        self._close(self._transport)


@contextlib.contextmanager
def _server() -> Iterator[tuple[tuple[str, int], Callable[[], float]]]:
    """Our protocol on a port, and how many CPU seconds its loop's thread has used."""
    config = uvicorn.Config(
        _answer, ws="none", lifespan="off", interface="asgi3", log_config=None, access_log=False
    )
    config.load()
    server = process._Server(config, Connections(100, Intake(1 << 27)))
    port = socket.create_server(("127.0.0.1", 0))
    loops: list[asyncio.AbstractEventLoop] = []
    serving = threading.Event()

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        serving.set()
        await server.serve(sockets=[port])

    def run() -> None:
        with asyncio.Runner(loop_factory=process._loop_factory()) as runner:
            runner.run(serve())

    async def used() -> float:
        return time.thread_time()

    thread = threading.Thread(target=run)
    thread.start()
    serving.wait()
    try:
        yield port.getsockname(), lambda: asyncio.run_coroutine_threadsafe(used(), loops[0]).result()
    finally:
        server.should_exit = True
        thread.join()


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": _BODY})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--requests", type=int, default=300, help="in each turn")
    arguments = parser.parse_args()
    rows = [measure(arguments.turns, arguments.requests) for measure in (short_way, one_write, accepting)]
    report.publish(
        "edges", "What three parts of the HTTP side cost and save", {"the event loop's thread": rows}
    )


if __name__ == "__main__":
    main()
