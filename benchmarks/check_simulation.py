"""The simulation compared with the real server: equal times and equal arrivals a second, on loopback.

    pip install simpy
    python -m benchmarks.check_simulation [--seconds 15]

The server's model and decoder sleep for exactly the times that the simulation is given, so any machine can check
what the simulation is about: slots, decoding cores, the batching policy, refusals. What the server adds of its own
(about a millisecond at rest) and what the machine does to it is the difference.
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks import processes, report
from benchmarks.serve import scrape
from benchmarks.simulate import Outcome, Pod, simulate
from service.cli.bench import loadgen
from service.cli.bench import run as bench
from service.settings import available_cores

#: A small pod whose parts are all visible: its device does 61 images a second in batches of 8, two cores 100.
_FIXED, _IMAGE, _DECODE = 0.05, 0.01, 0.02
_SHARES = (0.3, 0.5, 0.7, 0.9, 1.2)


def compare(pod: Pod, share: float, seconds: float) -> dict[str, Any]:
    """Returns one row: the real server and the simulation at ``share`` of the pod's capacity."""
    rate = share * pod.capacity
    tally, batch = _really(pod, rate, seconds)
    outcome = simulate(pod, rate, 20 * seconds)
    real = bench.percentiles(tally.latencies)
    refused = tally.statuses[429] + tally.statuses[504]
    return {
        "load": share,
        "requests/s": round(rate, 1),
        **_pair("p50 ms", real["p50"], 1000 * outcome.quantile(0.5)),
        **_pair("p99 ms", real["p99"], 1000 * outcome.quantile(0.99)),
        **_pair("mean batch", batch, _mean_batch(outcome)),
        **_pair("lost %", 100 * refused / tally.sent, 100 * outcome.lost),
    }


def _pair(name: str, real: float, simulated: float) -> dict[str, float]:
    return {f"{name}, server": round(real, 2), f"{name}, simulated": round(simulated, 2)}


def _mean_batch(outcome: Outcome) -> float:
    return sum(outcome.batches) / len(outcome.batches)


def _really(pod: Pod, rate: float, seconds: float) -> tuple[loadgen.Tally, float]:
    """Runs an open loop against a server with the pod's times and settings; returns its tally and mean batch size."""
    times = {"FIXED": pod.fixed, "IMAGE": pod.image, "DECODE": pod.decode}
    environment = {f"BENCHMARK_{name}_MS": str(1000 * value) for name, value in times.items()}
    settings = {"frontends": 1, "max_batch_size": pod.max_batch_size, "queue_capacity": pod.queue_capacity}
    with processes.serve(null=True, decode=False, environment=environment, **settings) as server:
        photo = bench.synthetic_photo(64, 64)
        load = bench.plan(
            server.url, [photo], bench.Upload(form=False), rate=rate, duration=seconds, warm_up=1.0
        )
        tally = loadgen.generate(load)
        after = scrape(server.url)
    return tally, after["imagenet_images_total"] / after["imagenet_batches_total"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=15.0, help="at each rate (15)")
    arguments = parser.parse_args()
    processes.end_with_servers()
    # As many decoding threads as the one front-end of the server has.
    pod = Pod(_FIXED, _IMAGE, _DECODE, available_cores(), max_batch_size=8, queue_capacity=32)
    rows = [compare(pod, share, arguments.seconds) for share in _SHARES]
    notes = [
        f"A batch of n takes {1000 * pod.fixed:g} + {1000 * pod.image:g} n ms, decoding {1000 * pod.decode:g} ms "
        f"on each of {pod.cores} threads, at most {pod.max_batch_size} a batch and {pod.queue_capacity} in flight.",
        "Open loop, Poisson arrivals, timed from when a request was due.",
    ]
    report.publish("check_simulation", "The simulation beside the server", {"one pod": rows}, notes)


if __name__ == "__main__":
    main()
