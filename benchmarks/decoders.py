"""What decoding in processes costs and brings: images a second, and how quickly the event loop answers meanwhile.

    python -m benchmarks.decoders [--seconds 5]

The null model behind real decoding, one front-end. Clients in a closed loop; another one asks `/livez` every few
milliseconds on a connection of its own: what it waits for is the front-end's event loop.
"""

from __future__ import annotations

import argparse
import http.client
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks import processes, report
from service import bench, loadgen

#: Pixels of the photos, and clients at once.
CASES = (((500, 375), 1), ((500, 375), 16), ((4000, 3000), 1), ((4000, 3000), 8))
_PAUSE = 0.005


class Prober(threading.Thread):
    """Asks `/livez` until it is told to end."""

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
    """One row."""
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    processes.end_with_servers()
    rows = [measure(size, clients, arguments.seconds) for size, clients in CASES]
    report.publish("decoders", "Decoding beside the event loop", {"null model": rows})


if __name__ == "__main__":
    main()
