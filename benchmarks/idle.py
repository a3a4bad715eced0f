"""The cost of thousands of idle and slow connections: the service's memory, and other clients' latency.

    python -m benchmarks.idle --idle 10000 --slow 1000

A service of one front-end with the hostile model, which answers at once, so that what is measured is the wire. The
same load runs before and during: clients that ask one after the other. The clients that idle are a process of their
own.
"""

from __future__ import annotations

import json
import resource
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
import numpy as np

from benchmarks.machine import describe
from service.cli.bench import loadgen
from service.cli.plan.server_process import memory_mib
from tests.drills import wire
from tests.drills.crowd import PHOTOS, address_of, options
from tests.server import Server

#: Seconds between two bytes of a slow head: it times out after ten seconds and is begun anew.
_BETWEEN_BYTES = 1.0
_REQUEST = b"GET /livez HTTP/1.1\r\nHost: bench\r\n\r\n"


def hold(host: str, port: int, idle: int, slow: int, rested: bool) -> None:
    """Opens the connections, reports it, and keeps them until standard input ends. ``rested``: each asked once."""
    _take_descriptors()
    connections = []
    for number in range(idle + slow):
        connection = socket.create_connection((host, port))
        if number < idle and rested:
            connection.sendall(_REQUEST)
            connection.recv(4096)
        connections.append(connection)
    print("held", flush=True)
    dripping, at = connections[idle:], 0
    while not select.select([sys.stdin], [], [], _BETWEEN_BYTES)[0]:
        for place, connection in enumerate(dripping):
            try:
                connection.sendall(_REQUEST[at : at + 1])
            except OSError:  # timed out: open the next one
                dripping[place] = socket.create_connection((host, port))
                dripping[place].sendall(_REQUEST[: at + 1])
        at = (at + 1) % (len(_REQUEST) - 1)
    print(json.dumps({"alive": sum(map(_alive, connections[:idle]))}), flush=True)


def _alive(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _take_descriptors() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def _held(address: tuple[str, int], idle: int, slow: int, rested: bool) -> Iterator[subprocess.Popen[str]]:
    arguments = [str(part) for part in (*address, idle, slow, int(rested))]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.idle", "hold", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def _load(address: tuple[str, int], seconds: float) -> dict[str, float]:
    requests = tuple(wire.request(photo) for photo, _ in PHOTOS)
    tally = loadgen.generate(loadgen.Plan(*address, requests, seconds, warm_up=1.0, clients=2))
    if set(tally.statuses) != {200}:
        raise click.ClickException(f"not every answer was 200: {dict(tally.statuses)}")
    p50, p99 = np.percentile(tally.latencies, [50, 99])
    return {"p50_ms": round(1000 * p50, 2), "p99_ms": round(1000 * p99, 2), "answers": len(tally.latencies)}


def measure(idle: int, slow: int, seconds: float, rested: bool) -> dict[str, object]:
    """Measures one service: alone, then with the connections."""
    with Server(**options(frontends=1)) as server:
        address = address_of(server.url)
        _load(address, seconds)
        alone, before = _load(address, seconds), memory_mib(server.pid)
        with _held(address, idle, slow, rested) as process:
            time.sleep(4.0)  # connections that have asked once are put aside
            beside, after = _load(address, seconds), memory_mib(server.pid)
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            alive = json.loads(process.stdout.readline())["alive"]
    return {
        "idle": idle,
        "slow": slow,
        "asked once": rested,
        "still open": alive,
        "alone": alone,
        "beside": beside,
        "p99 ratio": round(beside["p99_ms"] / alone["p99_ms"], 2),
        "memory +MiB": round(after - before, 1),
    }


@click.group(invoke_without_command=True)
@click.option("--idle", default=10_000)
@click.option("--slow", default=1_000)
@click.option("--seconds", default=15.0)
@click.pass_context
def main(context: click.Context, idle: int, slow: int, seconds: float) -> None:
    """Prints one JSON document."""
    if context.invoked_subcommand is None:
        _take_descriptors()
        rows = [measure(idle, slow, seconds, rested) for rested in (False, True)]
        print(json.dumps({"machine": describe(), "rows": rows}, indent=2))


@main.command("hold", hidden=True)
@click.argument("host")
@click.argument("port", type=int)
@click.argument("idle", type=int)
@click.argument("slow", type=int)
@click.argument("rested", type=int)
def hold_command(host: str, port: int, idle: int, slow: int, rested: int) -> None:
    """Runs `hold` for `measure`."""
    hold(host, port, idle, slow, bool(rested))


if __name__ == "__main__":
    main()
