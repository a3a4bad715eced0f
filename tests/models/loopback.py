"""An HTTP server on 127.0.0.1 that answers as a test tells it to, and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@dataclass(frozen=True)
class Request:
    """What a client sent. Header names are lower-case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """What it gets. With ``cut`` the connection ends after so many bytes of a body announced in full.

    With ``hang`` it stays open instead, until the client goes.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    hang: bool = False


@dataclass
class Loopback:
    """A running server: its address, how it answers, and every request so far."""

    url: str
    answer: Callable[[Request], Reply]
    requests: list[Request] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        """The paths asked for with GET or POST, in order."""
        return [request.path for request in self.requests if request.method != "HEAD"]


@contextmanager
def serve(answer: Callable[[Request], Reply]) -> Iterator[Loopback]:
    """Serve until the block ends; afterwards nothing listens on the port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, self.path, headers, body)
            loopback.requests.append(request)
            self.send(loopback.answer(request))

        def send(self, reply: Reply) -> None:
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body[: reply.cut])
            if reply.hang:
                self.rfile.read(1)
            if reply.cut is not None:
                self.close_connection = True

        do_GET = do_HEAD = do_POST = handle_one  # noqa: N815 (the base class's names)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    loopback = Loopback(f"http://127.0.0.1:{server.server_port}", answer)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield loopback
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
