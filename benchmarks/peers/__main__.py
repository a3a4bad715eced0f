"""One job on LitServe, mosec, BentoML, plain FastAPI and this service, with equal clients, in alternating rounds.

    python -m benchmarks.peers [--environments FOLDER] [--rounds 3] [--seconds 8] [--clients 24]
    python -m benchmarks.peers --servers mosec BentoML --keep FILE        a piece of it; the table is of all in FILE

densenet121 with the weights of ``random:0``, JPEG bytes over HTTP in, five classes out. Every server in turn has the
whole machine: started, asked once what it sees (the answers must agree), warmed up, loaded, ended; then the next;
and all of that again. Ours runs with ``runtime=eager``, so that all run the same network in the same library, and
once more as it is by default, beside plain FastAPI with that runtime. A form (``file``) is what all take but mosec,
whose documentation reads the raw body.

The first run makes a virtual environment for each under FOLDER, with the versions below.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from benchmarks import processes, report
from service.cli.bench import loadgen
from service.cli.bench import run as bench

_HERE = Path(__file__).parent
_COMMON = ("torch==2.13.0", "torchvision", "pillow", "numpy")
#: Seconds of load before it counts: BentoML learns from its first batches.
_WARM_UP = 6.0
#: Largest difference of probabilities: another order of additions, another batch.
_TOLERANCE = 1e-5
#: Cores that other work may take during a measurement, and the most repetitions. OpenMP's threads wait in a spin, so
#: that a little other work costs a lot.
_COMPANY, _TRIES = 0.1, 3


@dataclass(frozen=True)
class Peer:
    """A server: packages of its environment, its command at a port, and its route for a photo."""

    packages: tuple[str, ...]
    command: Callable[[Path, int], list[str]]
    path: str = "/predict"
    ready: str = "/health"
    form: bool = True


def _python(script: str, *flags: str) -> Callable[[Path, int], list[str]]:
    def command(environment: Path, port: int) -> list[str]:
        filled = [flag.format(port=port) for flag in flags]
        return [str(environment / "bin/python"), script, *filled]

    return command


def _bentoml(environment: Path, port: int) -> list[str]:
    service = "bentoml_service:Classifier"
    return [str(environment / "bin/bentoml"), "serve", service, "--port", str(port), "--host", "127.0.0.1"]


PEERS = {
    "plain FastAPI": Peer(
        ("fastapi==0.165.0", "uvicorn[standard]==0.54.0", "python-multipart"),
        _python("plain_fastapi.py", "{port}"),
    ),
    "FastAPI with OpenVINO": Peer(
        ("fastapi==0.165.0", "uvicorn[standard]==0.54.0", "python-multipart", "openvino==2026.4.1"),
        _python("fastapi_openvino.py", "{port}"),
    ),
    "LitServe": Peer(("litserve==0.2.19", "python-multipart"), _python("litserve_server.py", "{port}")),
    "mosec": Peer(
        ("mosec==0.9.8",),
        _python("mosec_server.py", "--port", "{port}", "--address", "127.0.0.1", "--timeout", "60000"),
        path="/inference",
        ready="/",
        form=False,
    ),
    "BentoML": Peer(("bentoml==1.4.39",), _bentoml, ready="/readyz"),
}


def environment(folder: Path, name: str) -> Path:
    """Returns the virtual environment of a peer, made if it does not exist."""
    path = folder / name.lower().replace("plain ", "").replace(" ", "-")
    if not (path / "bin/python").exists():
        venv.create(path, with_pip=True)
        packages = [*_COMMON, *PEERS[name].packages]
        subprocess.run([path / "bin/pip", "install", "--quiet", *packages], check=True)
    return path


def start(name: str, folder: Path) -> processes.ServerProcess:
    """Starts a peer in its environment."""
    peer, port = PEERS[name], processes.free_port()
    command = peer.command(environment(folder, name).resolve(), port)
    return processes.ServerProcess(command, port, peer.ready, folder=_HERE)


def measure(
    server: processes.ServerProcess, path: str, form: bool, photos: list[bytes], seconds: float, clients: int
) -> dict[str, float]:
    """Returns throughput, latency, CPU and memory of one round."""
    upload = bench.Upload(form=form)
    plan = bench.plan(
        server.url + path, photos, upload, duration=seconds + _WARM_UP, warm_up=_WARM_UP, clients=clients
    )
    began, before, busy = time.monotonic(), server.cpu_seconds(), processes.busy_seconds()
    tally = loadgen.generate(plan)
    spent, busy = server.cpu_seconds() - before, processes.busy_seconds() - busy
    latency = {"p50": 0.0, "p99": 0.0, **bench.percentiles(tally.latencies)}
    return {
        "images/s": tally.throughput,
        "p50 ms": latency["p50"],
        "p99 ms": latency["p99"],
        "CPU ms/image": 1000 * spent / max(1, tally.cpu_requests),
        "memory MiB": server.memory_mib(),
        "not 200": tally.sent - len(tally.latencies),
        "company, cores": (busy - spent - tally.cpu) / (time.monotonic() - began),
    }


def best_class(url: str, photo: bytes, form: bool) -> tuple[int, float]:
    """Returns the first class of a server's answer to one request."""
    host = urlsplit(url).netloc
    raw = bench.Upload(form=form).request(host, urlsplit(url).path, photo)
    head, _, body = raw.partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    with urllib.request.urlopen(request, timeout=60) as answer:
        first = json.load(answer)["predictions"][0]
    return int(first["class_id"]), float(first["probability"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache/imagenet-serve/peers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--servers", nargs="+", metavar="NAME", help="Only these.")
    parser.add_argument("--keep", type=Path, help="Where rounds are added to those of earlier pieces.")
    arguments = parser.parse_args()
    photos = [bench.synthetic_photo(500, 375, seed) for seed in range(8)]
    settings: dict[str, Any] = {"model": "densenet121", "weights": "random:0"}
    servers: dict[str, tuple[Callable[[], processes.ServerProcess], str, bool]] = {
        "ours, runtime=eager": (partial(processes.serve, **settings, runtime="eager"), "/predict", True),
        "ours, default": (partial(processes.serve, **settings), "/predict", True),
        **{
            name: (partial(start, name, arguments.environments), peer.path, peer.form)
            for name, peer in PEERS.items()
        },
    }
    processes.end_with_servers()
    chosen = {name: servers[name] for name in arguments.servers or servers}
    rounds, seen = kept(arguments.keep)
    for _ in range(arguments.rounds):
        for name, (begin, path, form) in chosen.items():
            tries: list[dict[str, float]] = []
            with begin() as server:
                seen[name] = best_class(server.url + path, photos[0], form)
                while len(tries) < _TRIES and (not tries or tries[-1]["company, cores"] > _COMPANY):
                    tries.append(measure(server, path, form, photos, arguments.seconds, arguments.clients))
                    print(name, {key: round(value, 2) for key, value in tries[-1].items()}, file=sys.stderr)
            rounds.setdefault(name, []).append(min(tries, key=lambda once: once["company, cores"]))
    if arguments.keep:
        arguments.keep.write_text(json.dumps({"rounds": rounds, "seen": seen}, indent=2))
    _must_agree(seen)
    publish({name: rounds[name] for name in servers if name in rounds}, arguments.clients)


def kept(path: Path | None) -> tuple[dict[str, list[dict[str, float]]], dict[str, tuple[int, float]]]:
    """Returns the rounds of earlier parts, and each server's answer to the first photo."""
    if path is None or not path.exists():
        return {}, {}
    document = json.loads(path.read_text())
    return document["rounds"], {name: (first, second) for name, (first, second) in document["seen"].items()}


def _must_agree(seen: dict[str, tuple[int, float]]) -> None:
    first = next(iter(seen.values()))
    for name, (class_id, probability) in seen.items():
        if class_id != first[0] or abs(probability - first[1]) > _TOLERANCE:
            raise RuntimeError(f"{name} sees something else: {seen}")


def publish(rounds: dict[str, list[dict[str, float]]], clients: int) -> None:
    """Publishes the median of the rounds, and the ratio of each of this service's rounds to the peer's."""
    ours, default = (
        [once["images/s"] for once in rounds.get(name, [])]
        for name in ("ours, runtime=eager", "ours, default")
    )
    rows: list[dict[str, Any]] = []
    for name, runs in rounds.items():
        middle = {key: round(median(once[key] for once in runs), 2) for key in runs[0]}
        rates = [once["images/s"] for once in runs]
        rows.append(
            {
                "server": name,
                **middle,
                "images/s, each round": " ".join(f"{rate:.1f}" for rate in rates),
                "ours (eager) / it": _ratio(ours, rates),
                "ours (default) / it": _ratio(default, rates),
            }
        )
    versions = ", ".join(package for peer in PEERS.values() for package in peer.packages[:1])
    notes = [
        f"{clients} clients, closed loop, connections kept; JPEG of 500 x 375; median of the rounds.",
        f"Versions: {versions}, torch 2.13.0 in each.",
        "All saw the same class with the same probability (1e-5) in the first photo.",
    ]
    report.publish("peers", "The same job on other servers", {"densenet121, torch eager": rows}, notes)


def _ratio(ours: list[float], theirs: list[float]) -> float | str:
    """Returns the ratios of equal rounds; empty if one of the two was not measured."""
    both = list(zip(ours, theirs, strict=False))
    return round(median(a / b for a, b in both), 2) if both else ""


if __name__ == "__main__":
    main()
