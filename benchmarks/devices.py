"""One engine against two: images a second of the whole service, with a device of a given speed.

    python -m benchmarks.devices [--seconds 5] [--image-ms 20] [--engines 1 2]

Each engine has a model that sleeps (`benchmarks.null`), so that it needs no core of its own: what is seen is whether
the port, the front-ends and the choice of an engine let two devices do twice as much. On a host with a core for each
engine and more, --image-ms 0 runs a real model, each on its share of the cores.
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks import processes, report
from service.cli.bench import loadgen
from service.cli.bench import run as bench
from service.settings import available_cores


def measure(engines: int, seconds: float, image_ms: float) -> dict[str, Any]:
    """Returns one row: a closed loop with enough clients for every engine."""
    photo = bench.synthetic_photo(500, 375)
    null = image_ms > 0
    settings: dict[str, Any] = {"device": ",".join(["cpu"] * engines), "frontends": 1}
    settings |= {"max_batch_size": 1} if null else {"weights": "demo"}
    environment = {"BENCHMARK_IMAGE_MS": str(image_ms)} if null else {}
    with processes.serve(null=null, decode=not null, environment=environment, **settings) as server:
        upload, clients = bench.Upload(form=False), 8 * engines
        loadgen.generate(bench.plan(server.url, [photo], upload, duration=2.0, clients=clients))
        tally = loadgen.generate(bench.plan(server.url, [photo], upload, duration=seconds, clients=clients))
    latency = bench.percentiles(tally.latencies)
    return {
        "engines": engines,
        "device": f"sleeps {image_ms:g} ms an image" if null else "its share of the cores",
        "clients": clients,
        "images/s": round(tally.throughput, 1),
        "p50 ms": latency["p50"],
        "p99 ms": latency["p99"],
        "not 200": sum(number for status, number in tally.statuses.items() if status != 200),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--image-ms", type=float, default=20.0, help="0 runs the demo model")
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    processes.end_with_servers()
    rows = [measure(engines, arguments.seconds, arguments.image_ms) for engines in arguments.engines]
    for row in rows:
        row["times the first"] = round(row["images/s"] / rows[0]["images/s"], 2)
    notes = [
        f"{available_cores()} cores, which clients, front-end and engines share.",
        "The clients of the closed loop are 8 for each engine.",
    ]
    report.publish("devices", "One engine against two", {"throughput": rows}, notes, "benchmarks.devices")


if __name__ == "__main__":
    main()
