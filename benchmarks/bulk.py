"""The cost of bulk work for interactive clients, and its throughput: a real server under both at once.

    python -m benchmarks.bulk [--model densenet121 --weights random] [--seconds 15] [--rounds 2]

First the server's own capacity (closed loop). Then, in turns, interactive requests at half of it (open loop,
Poisson) alone and beside a closed loop of bulk requests (``X-Priority: bulk``). The load generators run on the same
cores, in processes of their own, so what is left for bulk is the capacity less the interactive rate, and not the
whole of either.
"""

from __future__ import annotations

import argparse
import statistics
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from benchmarks import processes, report
from service.cli.bench import loadgen
from service.cli.bench import run as bench

_BULK = bench.Upload(headers=("X-Priority: bulk",))


def _load(url: str, upload: bench.Upload, seconds: float, **load: Any) -> loadgen.Tally:
    photo = bench.synthetic_photo(500, 375)
    return loadgen.generate(bench.plan(url, [photo], upload, duration=seconds, warm_up=2.0, **load))


def _row(name: str, rate: float, interactive: loadgen.Tally, bulk: float, free: float) -> dict[str, Any]:
    latency = bench.percentiles(interactive.latencies)
    return {
        "interactive": name,
        "asked/s": round(rate, 1),
        "answered/s": round(interactive.throughput, 1),
        "p50 ms": latency["p50"],
        "p99 ms": latency["p99"],
        "bulk images/s": round(bulk, 1),
        "bulk / what is left": round(bulk / free, 2) if bulk else "",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="densenet121")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--clients", type=int, default=8, help="bulk requests at once")
    arguments = parser.parse_args()
    processes.end_with_servers()
    rows: list[dict[str, Any]] = []
    settings = {"model": arguments.model, "weights": arguments.weights}
    with processes.serve(**settings) as server, ProcessPoolExecutor(2) as pool:
        capacity = _load(server.url, bench.Upload(), arguments.seconds, clients=16).throughput
        rate = capacity / 2
        for _ in range(arguments.rounds):
            alone = pool.submit(_load, server.url, bench.Upload(), arguments.seconds, rate=rate).result()
            rows.append(_row("alone", rate, alone, 0.0, capacity - alone.throughput))
            bulk = pool.submit(_load, server.url, _BULK, arguments.seconds, clients=arguments.clients)
            beside = pool.submit(_load, server.url, bench.Upload(), arguments.seconds, rate=rate).result()
            free = capacity - beside.throughput
            rows.append(_row("beside bulk", rate, beside, bulk.result().throughput, free))
    ratios = [
        with_bulk["p99 ms"] / alone["p99 ms"] for alone, with_bulk in zip(rows[::2], rows[1::2], strict=True)
    ]
    notes = [
        f"Capacity, closed loop of 16 clients: {capacity:.1f} images/s.",
        f"p99 beside bulk / alone: {statistics.median(ratios):.2f} (median of {len(ratios)} turns).",
    ]
    report.publish("bulk", "Bulk work beside interactive requests", {arguments.model: rows}, notes)


if __name__ == "__main__":
    main()
