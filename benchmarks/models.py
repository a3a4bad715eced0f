"""The serving speed of the twelve variants and the demo model on this machine, for the README's table.

    python -m benchmarks.models [--models densenet121 vgg16 …] [--seconds 8]

For each: a server with default settings and untrained weights (what a network costs does not depend on its weights;
the demo model comes with its own), JPEG bodies of 500 × 375, closed loop: one client, whose median latency is what a
single user sees, then enough clients to fill batches, whose rate is what the machine serves. The load generator runs
on the same cores. Models that were measured before and are not named now keep their row, as long as it was the same
processor.
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks import machine, processes, report
from service.cli.bench import loadgen
from service.cli.bench import run as bench
from service.models.catalog import VARIANTS

_RESULT = Path(__file__).parent / "results/models.json"
_MODELS = (*VARIANTS, "demo")
_WARM_UP = 1.5
_TABLE = "served, default settings"


def measure(name: str, photos: list[bytes], seconds: float) -> dict[str, Any]:
    """Returns one row."""
    settings: dict[str, Any] = (
        {"weights": "demo"} if name == "demo" else {"model": name, "weights": "random:0"}
    )
    with processes.serve(**settings) as server:
        with urllib.request.urlopen(f"{server.url}/model") as answer:
            card = json.load(answer)

        def load(clients: int) -> loadgen.Tally:
            plan = bench.plan(
                server.url,
                photos,
                bench.Upload(),
                duration=seconds + _WARM_UP,
                warm_up=_WARM_UP,
                clients=clients,
            )
            return loadgen.generate(plan)

        alone, full = load(1), load(16)
        memory = server.memory_mib()
    if set(alone.statuses) | set(full.statuses) != {200} or alone.failures or full.failures:
        raise RuntimeError(f"{name}: not all were answered 200: {alone.statuses} {full.statuses}")
    return {
        "model": name,
        "runtime": card["runtime"],
        "images/s": round(full.throughput, 1),
        "one client, p50 ms": round(bench.percentiles(alone.latencies)["p50"], 1),
        "memory MiB": round(memory),
    }


def kept(here: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the rows of earlier runs on this processor, by model."""
    if not _RESULT.exists():
        return {}
    document = json.loads(_RESULT.read_text())
    same = all(document["machine"][key] == here[key] for key in ("cpu", "cores", "gpu"))
    return {row["model"]: row for row in document["tables"][_TABLE]} if same else {}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(_MODELS), choices=_MODELS)
    parser.add_argument("--seconds", type=float, default=8.0)
    arguments = parser.parse_args()
    photos = [bench.synthetic_photo(500, 375, seed) for seed in range(8)]
    processes.end_with_servers()
    rows = kept(machine.describe())
    for name in arguments.models:
        rows[name] = measure(name, photos, arguments.seconds)
        report.publish(
            "models",
            "The variants, served over HTTP",
            {_TABLE: [rows[name] for name in _MODELS if name in rows]},
            ["JPEG of 500 x 375, raw body; 16 clients in a closed loop for images/s, one for the latency."],
        )


if __name__ == "__main__":
    main()
