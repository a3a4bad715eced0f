"""`python -m tests.fuzz.damage [--files 12000] [--seed 0]`: the corpus through decode, a part of it through a server.

Every file has to become an image or one of the contract's refusals, within bounds of time and memory; no
process may die. Prints a report; the exit code is 0 only if nothing was found.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import RequestError
from service.images.decode import decode
from service.settings import Settings
from tests.fuzz import corpus

MAX_PIXELS = Settings().max_image_pixels
#: CPU seconds and MiB above what the process had, for one image of `MAX_PIXELS` at most. A good 50-megapixel photo
#: takes two seconds and 20 bytes a pixel (WebP); these only have to be far below what would hurt.
MOST_SECONDS, MOST_MIB = 10.0, 1_200.0
ALLOWED = {200, 400, 413, 415, 422}


@dataclass(frozen=True)
class Verdict:
    name: str
    outcome: str
    seconds: float
    mib: float


def examine(number: int, files: int, seed: int, workers: int) -> list[Verdict]:
    """In a process of its own: decodes every ``workers``-th file of the corpus."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)  # libtiff and libjpeg say on stderr what they think of each file
    return [_one(*case) for case in _share(number, files, seed, workers)]


def _share(number: int, files: int, seed: int, workers: int) -> Iterator[tuple[str, bytes]]:
    for index, case in enumerate(corpus.damaged(files, seed)):
        if index % workers == number:
            yield case


def _one(name: str, data: bytes) -> Verdict:
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from what is resident
    before, began = _memory("VmRSS"), time.process_time()
    try:
        decode(data, max_pixels=MAX_PIXELS)
        outcome = "image"
    except RequestError as error:
        outcome = error.code
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}"
    return Verdict(name, outcome, time.process_time() - began, _memory("VmHWM") - before)


def _memory(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return 0.0


def through_decode(files: int, seed: int, workers: int) -> list[str]:
    """Complaints. A worker that dies loses its share, which is one."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers) as pool:
        jobs = [pool.apply_async(examine, (number, files, seed, workers)) for number in range(workers)]
        verdicts = [verdict for job in jobs for verdict in job.get(3600)]
    outcomes = Counter(verdict.outcome for verdict in verdicts)
    print(f"decode: {len(verdicts)} files, seed {seed}: {dict(outcomes.most_common())}")
    slowest = max(verdicts, key=lambda verdict: verdict.seconds)
    largest = max(verdicts, key=lambda verdict: verdict.mib)
    print(
        f"  slowest {slowest.seconds:.2f} s CPU ({slowest.name}), largest {largest.mib:.0f} MiB ({largest.name})"
    )
    known = {"image", "empty_body", "unsupported_media_type", "image_too_large", "invalid_image"}
    complaints = [
        f"{verdict.name}: {verdict.outcome}" for verdict in verdicts if verdict.outcome not in known
    ]
    complaints += [
        f"{verdict.name}: {verdict.seconds:.1f} s" for verdict in verdicts if verdict.seconds > MOST_SECONDS
    ]
    complaints += [f"{verdict.name}: {verdict.mib:.0f} MiB" for verdict in verdicts if verdict.mib > MOST_MIB]
    return complaints + ([] if len(verdicts) == files else [f"only {len(verdicts)} of {files} came back"])


def through_a_server(files: int, seed: int) -> list[str]:
    """Complaints of a real server, with the demo's processes: statuses, deaths, slots that never came back."""
    from tests import tiny
    from tests.server import HTTP, Server

    def send(case: tuple[int, tuple[str, bytes]]) -> tuple[str, int]:
        number, (name, data) = case
        if number % 2:
            return name, HTTP.post(server.url + "/predict", files={"file": ("photo.jpg", data)}).status_code
        headers: Any = {"content-type": "image/jpeg"}
        return name, HTTP.post(server.url + "/predict", content=data, headers=headers).status_code

    with (
        tempfile.TemporaryDirectory() as folder,
        Server(weights=tiny.directory(Path(folder)), frontends=2) as server,
    ):
        before = server.children()
        with ThreadPoolExecutor(4) as clients:
            answers = list(clients.map(send, enumerate(corpus.damaged(files, seed))))
        after, metrics = server.children(), server.metrics()
        code = server.terminate()
    statuses = Counter(status for _, status in answers)
    print(f"a server: {len(answers)} files, seed {seed}: {dict(statuses.most_common())}")
    complaints = [f"{name}: {status}" for name, status in answers if status not in ALLOWED]
    if set(before.values()) != set(after.values()):
        complaints.append(f"a process died: {before} became {after}")
    if metrics["imagenet_in_flight_requests"]:
        complaints.append(f"{metrics['imagenet_in_flight_requests']:.0f} slots never came back")
    return complaints + ([] if code == 0 else [f"it ended with {code}"])


def main() -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--files", type=int, default=12_000)
    options.add_argument("--over-http", type=int, default=2_000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--workers", type=int, default=2)
    given = options.parse_args()
    complaints = through_decode(given.files, given.seed, given.workers)
    complaints += through_a_server(given.over_http, given.seed + 1)
    for complaint in complaints:
        print("FOUND", complaint)
    print("found:", len(complaints))
    return int(bool(complaints))


if __name__ == "__main__":
    sys.exit(main())
