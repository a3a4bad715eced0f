"""How connections spread over the front-ends of a whole service, and that its end loses none of them."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from service.shared.transport import PROCESSES
from tests import tiny
from tests.server import Server, connections_of

pytestmark = pytest.mark.skipif(
    not PROCESSES or not Path("/proc/net/tcp").exists(),
    reason="counts connections in /proc",
)

FRONT_ENDS, CLIENTS = 3, 120
#: Seconds: a busy machine may need some for what takes milliseconds on an idle one.
PATIENCE = 60.0
#: Tries for a spread, since a machine may run no other front-end for a while.
TRIES = 3
REQUEST = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


def held(server: Server, port: int) -> list[int]:
    """The number of connections of each front-end."""
    return connections_of([pid for name, pid in server.children().items() if name != "engine"], port)


def at_once(port: int) -> list[socket.socket]:
    clients = [socket.socket() for _ in range(CLIENTS)]
    for client in clients:
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", port))
    for client in clients:
        client.settimeout(PATIENCE)
    return clients


def one_by_one(port: int) -> list[socket.socket]:
    return [socket.create_connection(("127.0.0.1", port), PATIENCE) for _ in range(CLIENTS)]


def connected(server: Server, connect: Callable[[int], list[socket.socket]]) -> list[socket.socket]:
    """Clients that have spread."""
    port = int(server.url.rpartition(":")[2])
    for _ in range(TRIES):
        clients = connect(port)
        give_up = time.monotonic() + PATIENCE
        while sum(spread := held(server, port)) < CLIENTS:
            assert time.monotonic() < give_up, spread
            time.sleep(0.05)
        if len(spread) == FRONT_ENDS and min(spread) >= CLIENTS / 10:
            return clients
        for client in clients:
            client.close()
        while sum(held(server, port)):
            assert time.monotonic() < give_up
            time.sleep(0.05)
    raise AssertionError(spread)


def test_connections_spread_and_each_is_answered_at_the_end() -> None:
    with Server(weights=tiny.shared(), frontends=FRONT_ENDS, drain_delay_ms=500) as server:
        for client in connected(server, one_by_one):
            client.close()
        clients = connected(server, at_once)
        os.kill(server.pid, signal.SIGTERM)
        for client in clients:
            client.sendall(REQUEST)
        assert [client.recv(12) for client in clients] == [b"HTTP/1.1 200"] * CLIENTS
        for client in clients:
            client.close()
        assert server.wait() == 0
