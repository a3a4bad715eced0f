"""A real server over HTTP from JPEG bytes: throughput against what the cores allow, latency, CPU, memory.

    python -m benchmarks.serve [--models densenet121 vgg16 null] [--seconds 12] [--size 500x375]

For each model, in this order and in one run:

1. the model alone: CPU seconds an image at the batch size that the server chose, all threads;
2. decoding alone: CPU seconds an image, ``decode=exact``;
3. the bound: cores / (1 + 2), which a server that costs nothing would reach;
4. closed loop at saturation: throughput, CPU per request of the whole tree, memory;
5. one client: latency, and what of it is neither model nor decoding;
6. open loop (Poisson) at 80 % of 4: latency from the moment when each request was due, beside the time of
   the forward pass that it rode in, which each answer's ``Server-Timing`` tells.

The load generator runs on the same cores; its CPU is in the table, and so is whoever else was at work.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import decode, processes, report
from service.cli.bench import loadgen
from service.cli.bench import run as bench
from service.settings import available_cores
from service.settings import load as load_settings
from service.shared.outputs import OutputKind

_MODELS = ("densenet121", "vgg16", "null")
#: Share of the throughput at saturation that the open loop requests.
_LOAD = 0.8
_WARM_UP = 2.0
#: Factor on the open loop's time: its last percentile needs many answers, and bursts of a Poisson process are rare.
_OPEN = 2.5


def alone(model: str, seconds: float) -> dict[str, Any]:
    """Returns CPU seconds and wall seconds an image of the model without a server, at its own largest batch."""
    from service.models import serving

    loaded = serving.load(load_settings(model=model, weights="random:0"), lambda state, detail: None)
    runner = loaded.runner
    runner.warm_up()
    size = runner.max_batch_size
    pixels = np.random.default_rng(0).integers(0, 256, (size, 224, 224, 3), np.uint8)
    results = np.zeros((size, runner.results), np.float32)
    slots, tasks = list(range(size)), [OutputKind.CLASSIFY] * size
    images, cpu, began = 0, time.process_time(), time.monotonic()
    while time.monotonic() - began < seconds:
        runner.run(pixels, slots, tasks, results)
        images += size
    wall = time.monotonic() - began
    return {
        "max_batch_size": size,
        "cpu": (time.process_time() - cpu) / images,
        "images_per_s": images / wall,
        "runtime": str(loaded.card().runtime),
    }


def _alone_elsewhere(model: str, seconds: float) -> dict[str, Any]:
    """Runs `alone` in a process of its own: torch's threads must not stay in this one."""
    if model == "null":
        return {"max_batch_size": 64, "cpu": 0.0, "images_per_s": float("inf"), "runtime": "none"}
    code = f"from benchmarks.serve import alone; import json; print(json.dumps(alone({model!r}, {seconds})))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def scrape(url: str) -> dict[str, float]:
    """Returns the service's metrics by name and labels."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def _mean(before: dict[str, float], after: dict[str, float], name: str, labels: str = "") -> float:
    total, count = f"{name}_sum{labels}", f"{name}_count{labels}"
    number = after[count] - before.get(count, 0)
    return (after[total] - before.get(total, 0)) / number if number else 0.0


_INFERENCE = ("imagenet_stage_duration_seconds", '{stage="inference"}')
_DECODE = ("imagenet_stage_duration_seconds", '{stage="decode"}')


def measure(model: str, photos: list[bytes], seconds: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the row of the throughput table and the rows of the latency table."""
    single = _alone_elsewhere(model, seconds / 2)
    decoding = decode.milliseconds(decode.exact, photos, seconds / 8) / 1000
    cores = available_cores()
    bound = cores / (single["cpu"] + decoding)
    settings: dict[str, Any] = {} if model == "null" else {"model": model, "weights": "random:0"}
    with processes.serve(null=model == "null", **settings) as server:
        clients = min(128, 3 * single["max_batch_size"] + 4)
        before, spent, busy = scrape(server.url), server.cpu_seconds(), processes.busy_seconds()
        began = time.monotonic()
        full = _load(server.url, photos, seconds + _WARM_UP, clients=clients)
        spent, busy = server.cpu_seconds() - spent, processes.busy_seconds() - busy
        company = (busy - spent - full.cpu) / (time.monotonic() - began)
        after = scrape(server.url)
        memory = server.memory_mib()
        latencies = [_latency_row(model, f"closed, {clients} clients", full, before, after)]
        before = scrape(server.url)
        one = _load(server.url, photos, seconds / 2 + _WARM_UP, clients=1)
        after = scrape(server.url)
        latencies.append(_latency_row(model, "closed, 1 client", one, before, after))
        before = scrape(server.url)
        steady = _load(server.url, photos, _OPEN * seconds + _WARM_UP, rate=_LOAD * full.throughput)
        after = scrape(server.url)
        name = f"open, {_LOAD:.0%} = {_LOAD * full.throughput:.1f}/s"
        latencies.append(_latency_row(model, name, steady, before, after))
    row = {
        "model": model,
        "runtime": single["runtime"],
        "batch": single["max_batch_size"],
        "model alone, images/s": round(single["images_per_s"], 1) if single["cpu"] else "",
        "model, CPU ms/image": round(1000 * single["cpu"], 2),
        "decode, CPU ms/image": round(1000 * decoding, 2),
        "bound, images/s": round(bound, 1),
        "served, images/s": round(full.throughput, 1),
        "served / bound": round(full.throughput / bound, 3),
        "CPU ms/request": round(1000 * spent / full.cpu_requests, 2),
        "model and decode / CPU": round((single["cpu"] + decoding) * full.cpu_requests / spent, 3),
        "generator CPU us/request": round(1e6 * full.cpu / full.cpu_requests, 1),
        "others, cores": round(max(0.0, company), 3),
        "memory MiB": round(memory),
    }
    return row, latencies


def _load(url: str, photos: list[bytes], duration: float, **load: Any) -> loadgen.Tally:
    plan = bench.plan(url, photos, bench.Upload(), duration=duration, warm_up=_WARM_UP, timings=True, **load)
    tally = loadgen.generate(plan)
    if set(tally.statuses) != {200} or tally.failures:
        print(f"not all were answered 200: {tally.statuses} {tally.failures}", file=sys.stderr)
    return tally


def _latency_row(
    model: str, name: str, tally: loadgen.Tally, before: dict[str, float], after: dict[str, float]
) -> dict[str, Any]:
    found = bench.percentiles(tally.latencies)
    inference, decoding = (1000 * _mean(before, after, *stage) for stage in (_INFERENCE, _DECODE))
    times, own = (1000 * np.asarray(values) for values in (tally.latencies, tally.inferences))
    last = float(own[times >= found["p99"]].mean())
    return {
        "model": model,
        "load": name,
        "answers/s": round(tally.throughput, 1),
        **{f"{point} ms": round(value, 2) for point, value in found.items()},
        "mean batch": round(_mean(before, after, "imagenet_batch_size"), 1),
        "inference ms": round(inference, 2),
        "decode ms": round(decoding, 2),
        "p50 - inference - decode": round(found["p50"] - inference - decoding, 2),
        "p99's pass ms": round(last, 2),
        "p99 / its pass": round(found["p99"] / last, 2) if last > 1 else "",
        "latency / own pass, p99": round(float(np.percentile(times / own, 99)), 2) if last > 1 else "",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(_MODELS), choices=_MODELS)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--size", default="500x375")
    arguments = parser.parse_args()
    width, height = (int(side) for side in arguments.size.split("x"))
    photos = [bench.synthetic_photo(width, height, seed) for seed in range(8)]
    processes.end_with_servers()
    measured = []
    for model in arguments.models:
        measured.append(measure(model, photos, arguments.seconds))
        publish(arguments.size, measured)  # published early, in case a later model takes too long


def publish(size: str, measured: list[tuple[dict[str, Any], list[dict[str, Any]]]]) -> None:
    """Publishes both tables."""
    report.publish(
        "serve",
        f"Served over HTTP, JPEG of {size}",
        {
            "throughput": [row for row, _ in measured],
            "latency, ms": [row for _, rows in measured for row in rows],
        },
        [
            "Weights are random:0; what a network costs does not depend on its weights.",
            "The bound counts the cores whole; the load generator and the kernel's network share them.",
            "'others, cores' is what neither the server nor the generator used while it was saturated: other work "
            "on the machine, which the bound knows nothing of.",
            "'p99's pass' is the mean forward pass of the slowest hundredth; 'latency / own pass, p99' is the 99th "
            "percentile of each request's own quotient.",
            "'model and decode / CPU' is the share of the tree's CPU that went into model and decoding as "
            "measured alone: what served / bound would be if the tree had had the cores for itself.",
        ],
    )


if __name__ == "__main__":
    main()
