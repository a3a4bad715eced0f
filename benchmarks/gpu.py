"""One GPU, checked and measured within eight minutes; a short table last.

    python -m benchmarks.gpu [--minutes 8] [--weights random:0] [--models ...] [--allow-no-gpu]

1. numbers: each variant and precision, as CUDA graphs, then eager, then compiled, at every bucket, against
   the plain network in fp32 on the CPU; that padding changes no row;
2. raw: images a second of each variant in fp16, from slots to results with the copies, and of the graphs alone;
3. served: the real server from JPEG bytes over HTTP, decode=exact and fast, closed loop and at 80 % of it.

What does not fit into the time is left out and named. Exit code 1 when a check failed, or without CUDA.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Any

import numpy as np
import torch

from benchmarks import decode, gpu_checks, processes, report
from service import bench, loadgen
from service.models.catalog import VARIANTS
from service.models.checkpoints import Checkpoint, resolve
from service.models.cuda.pipeline import StreamRunner
from service.settings import available_cores
from service.task import Task

#: Shares of the time: the rest is for serving.
_CHECKS_UNTIL, _SERVED_FROM = 0.6, 0.62
_PHOTOS = 32
_SERVED = ("densenet121", "vgg16")
_LOAD = 0.8
_WARM_UP = 3.0

Row = dict[str, Any]
#: (checkpoint, precision, runtime) → a runner that is not warmed up.
MakeRunner = Callable[[Checkpoint, str, str], StreamRunner]


def cases(models: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """(model, precision, runtime), what is served by default first."""
    models = list(models)
    for runtime, precisions in (("cudagraph", ("fp16", "fp32", "bf16")), ("eager", ("fp16", "fp32", "bf16"))):
        for precision, model in product(precisions, models):
            yield model, precision, runtime
    for model in _SERVED:
        if model in models:
            yield model, "fp16", "compile"


def numbers(
    models: Iterable[str],
    weights: str,
    make: MakeRunner,
    until: float,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[list[Row], list[Row], list[str]]:
    """The rows of the checks and of the raw throughput, and what there was no time for."""
    checks: list[Row] = []
    raws: list[Row] = []
    left_out: list[str] = []
    known: dict[str, tuple[Checkpoint, Any, Any]] = {}
    for model, precision, runtime in cases(models):
        name = f"{model} {precision} {runtime}"
        if clock() > until:
            left_out.append(name)
            continue
        if model not in known:
            checkpoint = resolve(weights, model)
            pixels = gpu_checks.photos(_PHOTOS, checkpoint.preprocessing.shape)
            known[model] = checkpoint, pixels, gpu_checks.reference(checkpoint, pixels)
        checkpoint, pixels, expected = known[model]
        row: Row = {"model": model, "precision": precision, "runtime": runtime}
        began = clock()
        try:
            runner = make(checkpoint, precision, runtime)
            runner.warm_up()
            row |= {"ready in s": round(clock() - began, 1), "batch": runner.max_batch_size}
            row |= gpu_checks.check(runner, pixels, expected).row(precision)
            if (precision, runtime) in (("fp16", "cudagraph"), ("fp16", "compile")):
                raws.append(raw(runner, model))
        except Exception as error:
            # One that cannot be had is a line of the table; the others are still worth their time.
            row |= {
                "check": f"FAILED: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            }
        checks.append(row)
        print(row, file=sys.stderr)
        runner = None  # type: ignore[assignment]
        gc.collect()
    return checks, raws, left_out


def raw(runner: StreamRunner, model: str, seconds: float = 1.5) -> Row:
    """Images a second with the copies both ways, and of the forward passes alone."""
    size = runner.max_batch_size
    pixels = np.random.default_rng(0).integers(0, 256, (2 * size, *runner.image), np.uint8)
    results = np.zeros((2 * size, runner.results), np.float32)
    tasks, halves = [Task.CLASSIFY] * size, (list(range(size)), list(range(size, 2 * size)))
    images, began = 0, time.perf_counter()
    running = runner.start(pixels, halves[0], tasks, results)
    turn = 1
    while time.perf_counter() - began < seconds:
        following = runner.start(pixels, halves[turn % 2], tasks, results)
        running.finish()
        running, turn, images = following, turn + 1, images + size
    running.finish()
    rate = (images + size) / (time.perf_counter() - began)
    return {
        "model": model,
        "runtime": runner.runtime.name,
        "precision": runner.runtime.precision,
        "batch": size,
        "slots to results, images/s": round(rate),
        "forward alone, images/s": round(runner.forward_rate(seconds)),
    }


def decoding(photos: list[bytes]) -> dict[str, float]:
    """Images a second of one core, by the setting ``decode``."""
    return {name: 1000 / decode.milliseconds(decode.KINDS[name], photos, 0.5) for name in ("exact", "fast")}


def served(
    model: str, way: str, weights: str, raw_rate: float, core_rate: float, photos: list[bytes], seconds: float
) -> Row:
    """The server under load: throughput beside what model and cores allow, latency at 80 % of it."""
    cores = available_cores()
    bound = min(raw_rate, cores * core_rate)
    setting = {"IMAGENET_DECODE": way}
    with processes.serve(model=model, weights=weights, device="cuda", environment=setting) as server:
        full = _load(server.url, photos, seconds, clients=1024)
        steady = _load(server.url, photos, seconds, rate=_LOAD * full.throughput)
    return {
        "model": model,
        "decode": way,
        "served, requests/s": round(full.throughput),
        "raw, images/s": round(raw_rate),
        "decode, images/s per core": round(core_rate),
        "served / bound": round(full.throughput / bound, 3),
        "p50 ms at 80 %": round(bench.percentiles(steady.latencies)["p50"], 1),
        "p99 ms at 80 %": round(bench.percentiles(steady.latencies)["p99"], 1),
        "generator CPU us": round(1e6 * full.cpu / max(1, full.cpu_requests), 1),
    }


def _load(url: str, photos: list[bytes], seconds: float, **load: Any) -> loadgen.Tally:
    plan = bench.plan(url, photos, bench.Upload(), duration=seconds + _WARM_UP, warm_up=_WARM_UP, **load)
    tally = loadgen.generate(plan)
    if set(tally.statuses) - {200} or tally.failures:
        print(f"not all were answered 200: {tally.statuses} {tally.failures}", file=sys.stderr)
    return tally


def serve_all(raws: list[Row], weights: str, until: float) -> tuple[list[Row], list[str]]:
    """The rows of the served throughput, and what there was no time for."""
    photos = [bench.synthetic_photo(500, 375, seed) for seed in range(8)]
    core_rates = decoding(photos)
    rates = {row["model"]: row["forward alone, images/s"] for row in raws if row["runtime"] == "cudagraph"}
    wanted = [(model, way) for way in ("exact", "fast") for model in _SERVED if model in rates]
    rows: list[Row] = []
    for number, (model, way) in enumerate(wanted):
        # A server needs some twenty seconds to start and end.
        seconds = min(10.0, (until - time.monotonic()) / (len(wanted) - number) / 2 - 10 - _WARM_UP)
        if seconds < 2:
            return rows, [f"served {model} {way}" for model, way in wanted[number:]]
        rows.append(served(model, way, weights, rates[model], core_rates[way], photos, seconds))
        print(rows[-1], file=sys.stderr)
    return rows, []


def on_cuda(checkpoint: Checkpoint, precision: str, runtime: str) -> StreamRunner:
    from service.models.cuda import start
    from service.models.placement import Placement

    placement = Placement("cuda", precision, runtime)
    return start.start(checkpoint, placement, None, None, lambda detail: None)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="at most, for everything")
    parser.add_argument(
        "--weights", default="random:0", help="random:0 needs no network; pretrained says more"
    )
    parser.add_argument("--models", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument(
        "--allow-no-gpu", action="store_true", help="exit with 0 where there is no CUDA device"
    )
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "benchmarks.gpu: torch sees no CUDA device here, so nothing was checked or measured",
            file=sys.stderr,
        )
        return 0 if arguments.allow_no_gpu else 1
    processes.end_with_servers()
    torch.set_num_threads(available_cores())
    began, whole = time.monotonic(), 60 * arguments.minutes - 20
    checks, raws, left_out = numbers(
        arguments.models, arguments.weights, on_cuda, began + _CHECKS_UNTIL * whole
    )
    torch.cuda.empty_cache()
    over_http, also = serve_all(raws, arguments.weights, began + whole)
    publish(checks, raws, over_http, [*left_out, *also], arguments.weights)
    return int(any(row["check"] != "passed" for row in checks))


def publish(
    checks: list[Row], raws: list[Row], over_http: list[Row], left_out: list[str], weights: str
) -> None:
    """The tables, the short one last."""
    failed = [row for row in checks if row["check"] != "passed"]
    notes = [
        f"Weights {weights}. Distance is the largest ‖out - ref‖ / ‖ref‖ of an image's logits, ref in fp32 on the CPU.",
        "'forward alone' is the graph without copies to and from the host.",
        "The bound is the smaller of 'forward alone' and the cores' decoding; the load generator shares the cores.",
        f"No time for: {', '.join(left_out) or 'nothing left out'}.",
    ]
    summary = [
        {
            "checks": f"{len(checks) - len(failed)} of {len(checks)} passed",
            **{
                f"{row['model']} raw/s": row["forward alone, images/s"]
                for row in raws
                if row["model"] in _SERVED
            },
            **{f"{row['model']} served/s, {row['decode']}": row["served, requests/s"] for row in over_http},
        }
    ]
    tables = {"checks": checks, "raw": raws, "served": over_http, "in short": summary}
    report.publish("gpu", "One GPU", {name: rows for name, rows in tables.items() if rows}, notes)
    print("", *report.table(summary), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
