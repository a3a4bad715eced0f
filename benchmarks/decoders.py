"""The cost and gain of decoding in processes: the hop alone, images a second, and the event loop's latency.

    python -m benchmarks.decoders [--seconds 5]

The hop: a picture of 60 kB goes to a decoder that does nothing, and 150,528 bytes of pixels come back; 16 at a time,
in a process without HTTP. CPU time of the process and its decoders.

The others: the null model behind real decoding, one front-end. Clients in a closed loop; another one asks `/livez`
every few milliseconds on a connection of its own: what it waits for is the front-end's event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks import processes, report
from service.cli.bench import loadgen
from service.cli.bench import run as bench
from service.engine.decode_memory import DecodeMemory
from service.host import usage
from service.images.decoders import picture
from service.images.decoders.keeper import Keeper
from service.images.decoders.picture import Picture, Recipe
from service.images.decoders.pool import DecoderPool
from service.images.decoders.threads import Threads
from service.preprocess import Preprocessing

#: Size of the photos, and number of clients.
CASES = (((500, 375), 1), ((500, 375), 16), ((4000, 3000), 1), ((4000, 3000), 8))
_PAUSE = 0.005
#: Pictures in the measurement of the hop, and pictures at a time.
_HOPS, _AT_A_TIME = 16_000, 16


class Prober(threading.Thread):
    """Asks `/livez` repeatedly until it is ended."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self.ended = threading.Event()
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)

    def run(self) -> None:
        while not self.ended.wait(_PAUSE):
            began = time.perf_counter()
            self._connection.request("GET", "/livez")
            self._connection.getresponse().read()
            self.seconds.append(time.perf_counter() - began)
        self._connection.close()


def measure(size: tuple[int, int], clients: int, seconds: float) -> dict[str, Any]:
    """Returns one row."""
    photo = bench.synthetic_photo(*size)
    with processes.serve(null=True, frontends=1) as server:
        upload = bench.Upload()
        loadgen.generate(bench.plan(server.url, [photo], upload, duration=1.0, clients=clients))
        prober = Prober(server.url)
        prober.start()
        before = server.cpu_seconds()
        tally = loadgen.generate(bench.plan(server.url, [photo], upload, duration=seconds, clients=clients))
        spent = server.cpu_seconds() - before
        prober.ended.set()
        prober.join()
    latency = bench.percentiles(tally.latencies)
    loop = 1000 * np.percentile(prober.seconds, [50, 99, 100])
    return {
        "pixels": f"{size[0]} x {size[1]}",
        "clients": clients,
        "images/s": round(tally.throughput, 1),
        "CPU ms/image": round(1000 * spent / tally.sent, 2),
        "p50 ms": latency["p50"],
        "p99 ms": latency["p99"],
        "loop p50 ms": round(float(loop[0]), 2),
        "loop p99 ms": round(float(loop[1]), 2),
        "loop max ms": round(float(loop[2]), 1),
    }


def hop(kind: str) -> dict[str, Any]:
    """Returns one row: ``threads`` or ``processes``. Runs in a process of its own, since it forks."""
    command = [sys.executable, "-m", "benchmarks.decoders", "--hop", kind]
    row: dict[str, Any] = json.loads(
        subprocess.run(command, capture_output=True, check=True, text=True).stdout
    )
    return row


def _hop(kind: str) -> dict[str, Any]:
    picture.prepare = lambda *_, **__: None  # type: ignore[assignment, attr-defined]
    keeper = Keeper() if kind == "processes" else None
    recipe = Recipe(Preprocessing(), 50_000_000, fast=False)

    async def run() -> dict[str, Any]:
        pool: DecoderPool | Threads = Threads(2) if keeper is None else DecoderPool(keeper, 2, DecodeMemory())
        if isinstance(pool, DecoderPool):
            pool.configure(recipe, 1 << 20)
        data, slots = os.urandom(60_000), np.zeros((_AT_A_TIME, 224, 224, 3), np.uint8)

        async def client(number: int, times: int) -> None:
            for _ in range(times):
                writing = pool.begin(Picture(data, recipe), slots[number], lambda seconds: None)
                await writing.done
                writing.abandon(lambda: None)

        await client(0, 100)
        before, began = _spent(), time.monotonic()
        await asyncio.gather(*(client(number, _HOPS // _AT_A_TIME) for number in range(_AT_A_TIME)))
        spent, took = _spent() - before, time.monotonic() - began
        await pool.close()
        return {
            "decoders": kind,
            "CPU us/picture": round(1e6 * spent / _HOPS, 1),
            "a second": round(_HOPS / took),
        }

    return asyncio.run(run())


def _spent() -> float:
    return sum(one.cpu_seconds for one in usage.by_process(os.getpid()).values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--hop", choices=["threads", "processes"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.hop:
        print(json.dumps(_hop(arguments.hop)))
        return
    processes.end_with_servers()
    hops = [hop(kind) for kind in ("threads", "processes") * 2]
    rows = [measure(size, clients, arguments.seconds) for size, clients in CASES]
    report.publish("decoders", "Decoding beside the event loop", {"the hop": hops, "null model": rows})


if __name__ == "__main__":
    main()
