"""A proxy that serves another server under a prefix and strips it, as many do by default."""

from __future__ import annotations

import http.server
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

#: Headers that belong to one connection, or that the proxy's own server writes.
_OWN = {"connection", "transfer-encoding", "content-length", "date", "server", "host", "accept-encoding"}


@contextmanager
def stripping(prefix: str, target: str) -> Iterator[str]:
    """The address under which ``target`` is served, without the slash at its end. Outside of it all is 404."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._forward(None)

        def do_POST(self) -> None:
            self._forward(self.rfile.read(int(self.headers.get("content-length", "0"))))

        def _forward(self, body: bytes | None) -> None:
            if not self.path.startswith(f"{prefix}/"):
                self.send_error(404, "outside of the prefix")
                return
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _OWN}
            request = urllib.request.Request(
                target + self.path.removeprefix(prefix), body, headers, method=self.command
            )
            try:
                answer = urllib.request.urlopen(request, timeout=60)
            except urllib.error.HTTPError as error:
                answer = error
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in _OWN:
                    self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}{prefix}"
    finally:
        server.shutdown()
        server.server_close()
