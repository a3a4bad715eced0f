"""Requests as bytes, and one exchange over a socket that says exactly how it ended."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any

#: Seconds: above every deadline that a drill sets.
_TIMEOUT = 60.0


@dataclass(frozen=True)
class Outcome:
    """``status`` is an HTTP status, or a word: "refused" (no connection, so never admitted), "lost" (no answer)."""

    status: int | str
    seconds: float
    began: float
    document: Any = None
    reason: str = ""


class Client:
    """One connection at a time to ``address``; kept between requests if ``keep`` and the server agrees."""

    def __init__(self, address: tuple[str, int], *, keep: bool = False) -> None:
        self._address = address
        self._keep = keep
        self._connection: http.client.HTTPConnection | None = None

    def ask(self, data: bytes, path: str = "/predict", method: str = "POST", **headers: str) -> Outcome:
        """Sends an image, or anything, and waits for the answer."""
        began = time.monotonic()
        sent = {
            "Content-Type": "image/png",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        if not self._keep:
            sent["Connection"] = "close"
        try:
            connection = self._connection or self._connect()
        except OSError as error:
            return Outcome("refused", time.monotonic() - began, began, reason=type(error).__name__)
        try:
            connection.request(method, path, body=data, headers=sent)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            return Outcome("lost", time.monotonic() - began, began, reason=type(error).__name__)
        took = time.monotonic() - began
        if response.will_close or not self._keep:
            self.close()
        is_json = "json" in response.headers.get("content-type", "")
        return Outcome(response.status, took, began, json.loads(body) if is_json else None)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(*self._address, timeout=_TIMEOUT)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        return connection


def request(data: bytes, **headers: str) -> bytes:
    """A whole HTTP/1.1 request to `/predict`."""
    lines = [
        "POST /predict HTTP/1.1",
        "Host: drill",
        "Content-Type: image/png",
        f"Content-Length: {len(data)}",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def hang_up(address: tuple[str, int], data: bytes, after: float, *, partly: bool = False) -> bool:
    """Sends a request (``partly``: half of it), waits ``after`` seconds and goes away with a reset, so that nobody
    takes it for one that has only closed its sending half. False when refused."""
    message = request(data)
    try:
        with socket.create_connection(address, timeout=_TIMEOUT) as connection:
            connection.sendall(message[: len(message) // 2] if partly else message)
            time.sleep(after)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        return False
    return True
