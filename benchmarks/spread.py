"""Measures how connections spread over front-ends: the null model, and clients that connect and stay.

    python -m benchmarks.spread [--front-ends 6] [--clients 120 600]

At once, one after the other, every ten milliseconds, and one after the other where each asks and is answered before
the next. The table has the most connections of a front-end over the mean: 1 is an even spread.
"""

from __future__ import annotations

import argparse
import socket
import time
from collections.abc import Callable
from typing import Any

from benchmarks import processes, report
from service.host.usage import children
from tests.server import connections_of

_REQUEST = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
_PATIENCE = 60.0

Address = tuple[str, int]


def at_once(address: Address) -> socket.socket:
    client = socket.socket()
    client.setblocking(False)
    client.connect_ex(address)
    return client


def after_the_other(address: Address) -> socket.socket:
    return socket.create_connection(address, _PATIENCE)


def ten_ms_apart(address: Address) -> socket.socket:
    time.sleep(0.01)
    return after_the_other(address)


def answered(address: Address) -> socket.socket:
    client = after_the_other(address)
    client.sendall(_REQUEST)
    client.recv(4096)
    return client


def spread(
    server: processes.ServerProcess, clients: int, connect: Callable[[Address], socket.socket]
) -> list[int]:
    """The connections of each front-end, once all are accepted."""
    port = int(server.url.rpartition(":")[2])
    pids = children(server.pids[0])
    open_ones = [connect(("127.0.0.1", port)) for _ in range(clients)]
    give_up = time.monotonic() + _PATIENCE
    while sum(held := connections_of(pids, port)) < clients and time.monotonic() < give_up:
        time.sleep(0.1)
    for client in open_ones:
        client.close()
    while sum(connections_of(pids, port)) and time.monotonic() < give_up:
        time.sleep(0.1)
    return sorted(held, reverse=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--front-ends", type=int, default=6)
    parser.add_argument("--clients", type=int, nargs="+", default=[120, 600])
    arguments = parser.parse_args()
    front_ends = arguments.front_ends
    rows: list[dict[str, Any]] = []
    processes.end_with_servers()
    with processes.serve(null=True, frontends=front_ends) as server:
        for clients in arguments.clients:
            for connect in (at_once, after_the_other, ten_ms_apart, answered):
                held = spread(server, clients, connect)[:front_ends]  # the engine holds none
                name = connect.__name__.replace("_", " ")
                ratio = round(max(held) * front_ends / clients, 2)
                rows.append({"clients": clients, "come": name, "most/mean": ratio, "held": str(held)})
    report.publish("spread", "How connections spread over front-ends", {f"{front_ends} front-ends": rows})


if __name__ == "__main__":
    main()
