"""The tables of benchmarks/results as pictures in docs/plots, for docs/PERFORMANCE.md.

    pip install '.[bench]'
    python -m benchmarks.plots

It draws existing results and measures nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_RESULTS = Path(__file__).parent / "results"
_PLOTS = Path(__file__).parent.parent / "docs" / "plots"

Tables = dict[str, list[dict[str, Any]]]


def engine(tables: Tables, axes: Axes) -> None:
    """Draws slots a second over front-ends, a line for each batch size."""
    rows = tables["slots a second"]
    for size in sorted({row["max_batch_size"] for row in rows}):
        line = [(row["front-ends"], row["slots/s"]) for row in rows if row["max_batch_size"] == size]
        axes.plot(*zip(*line, strict=True), marker="o", label=f"{size} a batch")
    axes.axhline(20_000, color="grey", linestyle=":", label="goal on one core")
    axes.set(title="One engine, a model that costs nothing", xlabel="front-ends", ylabel="slots a second")
    axes.set_yscale("log")
    axes.legend()


def cost(tables: Tables, axes: Axes) -> None:
    """Draws the cost of a request over front-ends."""
    (rows,) = tables.values()
    _bars(
        axes,
        {f"{row['body']}, {row['frontends']} front-ends": row["CPU ms/request"] for row in rows},
    )
    axes.set(title="The server alone", xlabel="CPU ms a request")


def raw(tables: Tables, axes: Axes) -> None:
    """Draws this service's runtime over the faster of OpenVINO and ONNX Runtime, alone in the same run."""
    (rows,) = tables.values()
    for model in dict.fromkeys(row["model"] for row in rows):
        line = [(row["batch"], row["ours / best raw"]) for row in rows if row["model"] == model]
        axes.plot(*zip(*line, strict=True), marker="o", label=model)
    axes.axhline(1, color="grey", linestyle=":")
    axes.set(
        title="Ours / the best raw runtime", xlabel="images in a batch", ylabel="quotient of images a second"
    )
    axes.legend()


def decode(tables: Tables, axes: Axes) -> None:
    """Draws exact and fast decoding over plain Pillow."""
    (rows,) = tables.values()
    kinds = ("exact / plain", "fast / plain")
    _bars(axes, {f"{row['photos']}, {kind.split()[0]}": row[kind] for row in rows for kind in kinds})
    axes.axvline(1, color="grey", linestyle=":")
    axes.set(title="Bytes to pixels, times as fast as plain Pillow")


def serve(tables: Tables, axes: Axes) -> None:
    """Draws percentiles of each model at 80 % load."""
    points = ("p50 ms", "p90 ms", "p95 ms", "p99 ms", "p99.9 ms")
    for row in tables["latency, ms"]:
        if row["load"].startswith("open"):
            axes.plot(
                points, [row[point] for point in points], marker="o", label=f"{row['model']}, {row['load']}"
            )
    axes.set(title="Latency, Poisson arrivals", ylabel="ms")
    axes.set_yscale("log")
    axes.legend()


PLOTS: dict[str, Callable[[Tables, Axes], None]] = {
    "engine": engine,
    "cost": cost,
    "raw": raw,
    "decode": decode,
    "serve": serve,
}


def _bars(axes: Axes, values: dict[str, float]) -> None:
    bars = axes.barh(list(values), list(values.values()))
    axes.bar_label(bars, padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)


def main() -> None:
    # Text stays text, and equal numbers give an equal file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "imagenet-serve"})
    _PLOTS.mkdir(parents=True, exist_ok=True)
    for name, draw in PLOTS.items():
        source = _RESULTS / f"{name}.json"
        if not source.exists():
            continue
        figure = Figure(figsize=(7, 3.5), layout="constrained")
        draw(json.loads(source.read_text())["tables"], figure.subplots())
        figure.savefig(_PLOTS / f"{name}.svg", metadata={"Date": None})
        print(_PLOTS / f"{name}.svg")


if __name__ == "__main__":
    main()
