"""The steps of `benchmarks.gpu`, from the machine's description to the speed of serving."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import decode, gpu_checks, processes
from benchmarks.gpu import Outcome, Plan, Row, Step
from benchmarks.serve import scrape
from service.cli.bench import loadgen
from service.cli.bench import run as bench
from service.engine.files import MAX_TOGETHER
from service.host import machine as host
from service.models import canary, fused
from service.models.catalog import VARIANTS
from service.models.checkpoints import Checkpoint, resolve
from service.models.cuda import jpegs, start
from service.models.cuda.pipeline import CudaRunner
from service.models.loader import load
from service.models.placement import Placement
from service.models.runtimes import compiled
from service.models.runtimes.whole import DTYPES, whole
from service.preprocess import Preprocessing, prepare
from service.settings import available_cores
from service.shared.batches import DeviceFailed
from service.shared.fallback import Fallbacks
from service.shared.outputs import OutputKind

#: Models with goals, in images a second in fp16 on one H100 or H200; the server is loaded with these.
GOALS = {"densenet121": 20_000, "vgg16": 12_000}
#: Goals in requests a second over HTTP with 16 cores, by the setting ``decode``.
SERVED_GOALS = {"exact": 10_000, "gpu": 14_000}
_PHOTOS, _WARM_UP, _LOAD = 16, 2.0, 0.8
#: The buckets that are measured besides the largest, of a model with a goal and of others.
_BUCKETS, _FEW = (1, 8, 32, 64, 128), (1, 32)
#: Clients that ask at once for the highest rate, and the seconds of a load for each second of `Plan.seconds`.
_CLIENTS, _LOADED = 1024, 4.0


def make(
    checkpoint: Checkpoint, precision: str, runtime: str, fallbacks: Fallbacks | None = None
) -> CudaRunner:
    """Returns a warmed-up runner of exactly this runtime; raises where it would fall back."""
    noted = fallbacks or Fallbacks()
    runner = start.start(
        checkpoint, Placement("cuda", precision, runtime), None, None, lambda detail: None, noted
    )
    runner.warm_up()
    return runner


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Frees the device's memory of earlier runners, before and after."""
    gc.collect()
    torch.cuda.empty_cache()
    try:
        yield
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def machine(plan: Plan, before: dict[str, Outcome]) -> Outcome:
    """Reports GPU, driver, versions, and which compilers work."""
    properties = torch.cuda.get_device_properties(0)
    missing = compiled.compiler()
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    found = {
        "GPU": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory GB": round(properties.total_memory / 1e9, 1),
        "multiprocessors": properties.multi_processor_count,
        "driver": str(host.nvidia_driver()),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "cores": available_cores(),
        "Python.h": header.is_file(),
    }
    says = f"{properties.name}, torch {torch.__version__}; {missing or 'a compiler is there'}"
    return Outcome("FAILED" if missing else "passed", says, [found])


def numbers(plan: Plan, before: dict[str, Outcome]) -> Outcome:
    """Compares the canaries' answers of each network, layer by layer in fp32 and fp16, with fp32 on the CPU."""
    start.settle_numerics()
    rows = []
    for model in plan.models:
        checkpoint = resolve(plan.weights, model)
        wanted = start.expected_of(checkpoint)
        pixels = torch.from_numpy(canary.images(checkpoint.preprocessing.shape)).cuda()
        for precision in ("fp32", "fp16"):
            with alone(), torch.inference_mode():
                network = whole(load(checkpoint), torch.device("cuda", 0), precision, has_head=True)
                answers = network(pixels)[1].float().cpu().numpy()
                away = max(map(canary.distance, answers, wanted))
                del network
            rows.append(_judged(model, precision, away))
    return _verdict(rows)


def kernels(plan: Plan, before: dict[str, Outcome]) -> Outcome:
    """Compares each fused operation with torch's, in every precision."""
    compiled.keep_kernels()
    # Without it, the reference in fp32 would be TF32.
    start.settle_numerics()
    rows: list[Row] = []
    for precision, dtype in DTYPES.items():
        ops = fused.best(torch.device("cuda", 0), dtype)
        rows += [{"precision": precision, "operation": name, "check": "passed"} for name in ops.names]
        rows += [
            {"precision": precision, "operation": told.what, "check": f"FAILED: {told.why}"}
            for told in ops.refused
        ]
    return _verdict(rows)


def graphs(plan: Plan, before: dict[str, Outcome]) -> Outcome:
    """Checks every network in fp16 as CUDA graphs: each bucket against fp32 on the CPU, padding, and no fallback."""
    rows = []
    for model in plan.models:
        if plan.left() < 30:
            rows.append({"model": model, "check": "left out"})
            continue
        checkpoint = resolve(plan.weights, model)
        pixels = gpu_checks.photos(_PHOTOS, checkpoint.preprocessing.shape)
        wanted = gpu_checks.reference(checkpoint, pixels)
        with alone():
            noted, began = Fallbacks(), time.monotonic()
            runner = make(checkpoint, "fp16", "cudagraph", noted)
            row: dict[str, Any] = {
                "model": model,
                "ready in s": round(time.monotonic() - began, 1),
                "batch": runner.max_batch_size,
            }
            row |= gpu_checks.check(runner, pixels, wanted).row(runner.runtime.precision)
            if runner.runtime.name != "cudagraph" or list(noted):
                row["check"] = f"FAILED: {'; '.join(f'without {what}: {why}' for what, why in noted)}"
            del runner
        rows.append(row)
    return _verdict(rows)


def wrong(plan: Plan, before: dict[str, Outcome]) -> Outcome:
    """Damages a weight on the device: the canary must report it twice, and no request may be answered."""
    with alone():
        runner = make(resolve(plan.weights, plan.models[0]), "fp16", "eager")
        pixels = gpu_checks.photos(3, runner.image)
        results = np.zeros((3, runner.results), np.float32)
        batch = (pixels, [0, 1, 2], [OutputKind.CLASSIFY] * 3, results)
        runner.run(*batch)
        network: Any = runner.runtime.forward
        with torch.inference_mode():
            next(network.parameters()).mul_(2)
        try:
            runner.run(*batch)
        except DeviceFailed as error:
            return Outcome("passed", str(error)[:100])
    return Outcome("FAILED", "a damaged weight went unnoticed")


def memory(plan: Plan, before: dict[str, Outcome]) -> Outcome:
    """Takes most of the memory: batches must become smaller, and answers stay right."""
    with alone():
        free, _ = torch.cuda.mem_get_info()
        hog = torch.empty(max(0, free - (2 << 30)), dtype=torch.uint8, device="cuda")
        checkpoint = resolve(plan.weights, "vgg16")
        pixels = gpu_checks.photos(_PHOTOS, checkpoint.preprocessing.shape)
        runner = make(checkpoint, "fp16", "cudagraph")
        row = {"model": "vgg16", "free GB": 2, "largest batch": runner.limit}
        row |= gpu_checks.check(runner, pixels, gpu_checks.reference(checkpoint, pixels)).row(
            runner.runtime.precision
        )
        del runner, hog
    return _verdict([row])


def service(plan: Plan, before: dict[str, Outcome]) -> Outcome:
    """Checks the real server: it is ready, answers, reports its GPU's memory, and runs without any fallback."""
    photos = [bench.synthetic_photo(500, 375, seed) for seed in range(8)]
    rows = []
    for model in (name for name in GOALS if name in plan.models):
        began = time.monotonic()
        with processes.serve(model=model, weights=plan.weights, device="cuda", environment={}) as server:
            ready = time.monotonic() - began
            tally = _load(server.url, photos, 3.0, clients=32)
            found = scrape(server.url)
        down = [name for name in found if name.startswith("imagenet_fallback_info")]
        answered = not set(tally.statuses) - {200} and not tally.failures
        wrong = found.get("imagenet_canary_mismatch_total", 0)
        fine = answered and not down and not wrong
        rows.append(
            {
                "model": model,
                "ready in s": round(ready, 1),
                "answers": dict(tally.statuses),
                "fallbacks": down,
            }
            | {"check": "passed" if fine else f"FAILED: mismatches {wrong}, failures {tally.failures}"}
        )
    return _verdict(rows)


def raw(plan: Plan, before: dict[str, Outcome]) -> Outcome:
    """Measures images a second by bucket, from registered slots to results and of the graphs alone, beside
    expectations."""
    rows: list[Row] = []
    for model in sorted(plan.models, key=lambda name: name not in GOALS):
        if plan.left() < 15:
            rows.append({"model": model, "check": "left out"})
            continue
        with alone():
            runner = make(resolve(plan.weights, model), "fp16", "cudagraph")
            rows += rates(runner, model, torch.cuda.get_device_name(), plan.seconds)
            del runner
    short = [f"{row['model']} {row['images/s']:,}" for row in rows if row.get("goal")]
    missed = [row for row in rows if row.get("goal") and row["forward alone, images/s"] < row["goal"]]
    return Outcome("FAILED" if missed else "passed", "; ".join(short), rows)


def rates(runner: CudaRunner, model: str, device: str, seconds: float) -> list[Row]:
    """Returns a line for each bucket. The pixels are adopted by the runner, as an arena's are."""
    largest = runner.limit
    pixels = np.random.default_rng(0).integers(0, 256, (2 * largest, *runner.image), np.uint8)
    results = np.zeros((2 * largest, runner.results), np.float32)
    refused = runner.adopt(pixels)
    expects = _expecting(model, device, runner)
    rows = []
    wanted = _BUCKETS if model in GOALS else _FEW
    for size in sorted({bucket for bucket in wanted if bucket <= largest} | {largest}):
        row: Row = {
            "model": model,
            "precision": runner.runtime.precision,
            "batch": size,
            "images/s": round(overlapped(runner, pixels, results, size, seconds)),
            "forward alone, images/s": round(runner.forward_rate(seconds, size)),
        }
        if expects is not None:
            row["expected"] = round(expects(size))
        if size == largest and model in GOALS:
            row["goal"] = GOALS[model]
        if refused:
            row["arena"] = "not registered"
        rows.append(row)
    return rows


def _expecting(model: str, device: str, runner: CudaRunner) -> Callable[[int], float] | None:
    """Returns images a second by batch size, on paper; None for an unknown GPU, or without Triton."""
    if find_spec("triton") is None:
        return None
    from benchmarks.paper import expected
    from benchmarks.paper.trace import Paper

    gpu, precision = expected.gpu_of(device), runner.runtime.precision
    if gpu is None:
        return None
    paper = Paper(VARIANTS[model].configuration, precision, fuse=True)
    return lambda size: expected.images_a_second(paper.run(size, runner.image), gpu, precision)


def overlapped(runner: CudaRunner, pixels: Any, results: Any, size: int, seconds: float) -> float:
    """Returns images a second with two batches in flight and copies both ways."""
    tasks, halves = [OutputKind.CLASSIFY] * size, (list(range(size)), list(range(size, 2 * size)))
    images, turn, began = 0, 1, time.perf_counter()
    running = runner.start(pixels, halves[0], tasks, results)
    while time.perf_counter() - began < seconds:
        following = runner.start(pixels, halves[turn % 2], tasks, results)
        running.finish()
        running, turn, images = following, turn + 1, images + size
    running.finish()
    return (images + size) / (time.perf_counter() - began)


def decoding(plan: Plan, before: dict[str, Outcome]) -> Outcome:
    """Measures photos a second by the setting ``decode``: of one core alone, and of all cores at once."""
    photos, rows = [bench.synthetic_photo(500, 375, seed) for seed in range(8)], []
    for way in ("exact", "fast"):
        alone = 1000 / decode.milliseconds(decode.KINDS[way], photos, 0.5)
        rows.append({"decode": way, "a core": round(alone), "all cores": round(all_cores(way, plan.seconds))})
    says = "; ".join(f"{row['decode']} {row['a core']}/s, all cores {row['all cores']:,}/s" for row in rows)
    return Outcome("passed", says, rows)


#: Waits until all others are there, and prints the photos that it decoded in a second.
_DECODE = """
import sys, time
from benchmarks import decode
from service.cli.bench import run as bench
import numpy as np
way, seconds = decode.KINDS[sys.argv[1]], float(sys.argv[2])
photos, out, done = [bench.synthetic_photo(500, 375, seed) for seed in range(8)], np.empty((224, 224, 3), np.uint8), 0
print("ready", flush=True)
sys.stdin.readline()
began = time.perf_counter()
while time.perf_counter() - began < seconds:
    way(photos[done % 8], out)
    done += 1
print(done / (time.perf_counter() - began))
"""


def all_cores(way: str, seconds: float) -> float:
    """Returns photos a second of as many processes as cores, all at once: cores that share a unit are slower then."""
    command = [sys.executable, "-c", _DECODE, way, str(seconds)]
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(available_cores())
        ]
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        return sum(float(worker.communicate()[0]) for worker in workers)


def lane(plan: Plan, before: dict[str, Outcome]) -> Outcome:
    """Measures photos a second that the device decodes (``decode=gpu``) while no model runs, and its pixels' error."""
    photos = [bench.synthetic_photo(500, 375, seed) for seed in range(MAX_TOGETHER)]
    device = torch.device("cuda", torch.cuda.current_device())
    try:
        decoder = jpegs.open_decoder(Preprocessing(), device)
    except ValueError as error:
        return Outcome("FAILED", f"the lane stays shut: {error}")
    return lane_rate(decoder, photos, plan.seconds)


def lane_rate(decoder: jpegs.Decoder, photos: list[bytes], seconds: float) -> Outcome:
    """Does what `lane` does, for an open decoder."""
    into = np.empty((len(photos), *Preprocessing().shape), np.uint8)
    jpegs.adopt(into)
    decoded = decoder.decode(photos, list(into))
    away = [_away(data, got) for data, done, got in zip(photos, decoded, into, strict=True) if done]
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        done += sum(decoder.decode(photos, list(into)))
    rate = round(done / (time.perf_counter() - began))
    row = {"decode": "gpu", "photos/s": rate, "refused": len(photos) - len(away)}
    row |= {"grey levels away": round(float(np.mean(away)), 3) if away else ""}
    return Outcome("passed" if len(away) == len(photos) else "FAILED", f"gpu {rate}/s", [row])


def _away(data: bytes, got: jpegs.Pixels) -> float:
    """Returns the mean difference from the CPU's pixels in grey levels."""
    wanted = np.empty(got.shape, np.uint8)
    prepare(data, Preprocessing(), wanted, max_pixels=1 << 26)
    return float(np.abs(got.astype(np.int16) - wanted).mean())


def served(plan: Plan, before: dict[str, Outcome]) -> Outcome:
    """Loads the server: requests a second beside the bound of device and cores; p50 and p99 at 80 % of it; one client.

    The bound is the smaller of the device's images a second and of what all decoders together make.
    """
    rates_of = {row["model"]: row["images/s"] for row in before["raw"].rows if row.get("goal")}
    cores = {row["decode"]: row["all cores"] for row in before["decoding"].rows}
    # With the GPU's decoder, each file goes to the decoder that is free.
    both = {row["decode"]: row["photos/s"] + cores["exact"] for row in before["lane"].rows if row["photos/s"]}
    decoded = {"exact": cores["exact"], **both, **cores}
    rows: list[Row] = []
    for model in (name for name in rates_of if name in plan.models):
        for way in decoded:
            if plan.left() < 30:
                rows.append({"model": model, "decode": way, "check": "left out"})
                continue
            row = {"model": model, "decode": way, "bound": round(min(rates_of[model], decoded[way]))}
            rows.append(row | _served(plan, model, way))
    says = "; ".join(
        f"{row['model']} {row['decode']} {row['requests/s']:,}/s" for row in rows if "requests/s" in row
    )
    return Outcome("passed", says, rows)


def _served(plan: Plan, model: str, way: str) -> Row:
    photos = [bench.synthetic_photo(500, 375, seed) for seed in range(8)]
    setting, seconds = {"IMAGENET_DECODE": way}, _LOADED * plan.seconds
    with processes.serve(model=model, weights=plan.weights, device="cuda", environment=setting) as server:
        alone = bench.percentiles(_load(server.url, photos, seconds / 4, clients=1).latencies)
        full = _load(server.url, photos, seconds, clients=_CLIENTS)
        steady = bench.percentiles(_load(server.url, photos, seconds, rate=_LOAD * full.throughput).latencies)
    return {
        "requests/s": round(full.throughput),
        "goal with 16 cores": SERVED_GOALS.get(way, ""),
        "statuses": dict(full.statuses),
        "p50 ms at 80 %": round(steady["p50"], 1),
        "p99 ms at 80 %": round(steady["p99"], 1),
        "p50 ms of one client": round(alone["p50"], 1),
        "generator CPU us": round(1e6 * full.cpu / max(1, full.cpu_requests), 1),
    }


def _load(url: str, photos: list[bytes], seconds: float, **load: Any) -> loadgen.Tally:
    return loadgen.generate(
        bench.plan(url, photos, bench.Upload(), duration=seconds + _WARM_UP, warm_up=_WARM_UP, **load)
    )


def _judged(model: str, precision: str, away: float) -> Row:
    limit = canary.right_within(precision)
    fine = away <= limit
    return {"model": model, "precision": precision, "distance": float(f"{away:.2g}"), "limit": limit} | {
        "check": "passed" if fine else "FAILED"
    }


def _verdict(rows: Iterable[Row]) -> Outcome:
    rows = list(rows)
    failed = [row for row in rows if str(row["check"]).startswith("FAILED")]
    says = f"{sum(row['check'] == 'passed' for row in rows)} of {len(rows)} passed"
    if failed:
        says += f"; first: {' '.join(str(value) for value in failed[0].values())}"[:120]
    return Outcome("FAILED" if failed else "passed", says, rows)


#: Steps in the order of growing scope; seconds are the least that each needs.
STEPS = (
    Step("machine", "what the machine is, and whether kernels can be compiled", 1, machine),
    Step("numbers", "one image of each network against fp32 on the CPU", 30, numbers),
    Step("kernels", "each fused operation against torch's", 20, kernels),
    Step("graphs", "every network as CUDA graphs, every bucket, padding", 60, graphs),
    Step("canary", "a damaged weight is found", 20, wrong),
    Step("memory", "out of memory: smaller batches, right answers", 30, memory),
    Step("service", "the service end to end", 60, service),
    Step("raw", "images a second by bucket, beside what is expected", 60, raw),
    Step("decoding", "photos a second of the cores", 10, decoding),
    Step("lane", "photos a second that the GPU decodes, and how right", 10, lane),
    Step("served", "requests a second, p99 at 80 %, by decoding lanes", 30, served),
)
