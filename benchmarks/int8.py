"""The recipes of `imagenet-serve quantize`: the agreement of each with fp32, and its speed.

    python -m benchmarks.int8 [--calibrate FOLDER --photos FOLDER] [--models demo=demo densenet121=random:0 ...]

Without folders, and for random weights, there are random pixels, which say how fast a recipe is and nothing about
agreement. Recipes take turns, as in ``benchmarks.raw``. Needs nncf.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import raw, report
from service.cli.quantize import run as quantize
from service.models import loader
from service.models.building import describe
from service.models.catalog import VARIANTS
from service.models.checkpoints import resolve
from service.models.runner import ModelRunner
from service.models.runtimes import conversion, converting, int8
from service.models.runtimes.artifact import Graph
from service.models.runtimes.openvino import OpenVino, runtime
from service.preprocess import Preprocessing
from service.settings import available_cores
from service.shared.outputs import OutputKind

_LIMIT = 50_000_000
_BATCHES = (1, 16)


def photos(folder: Path | None, spec: Preprocessing, most: int) -> list[quantize.Images]:
    """Returns the photos of a folder as the service sees them, or random pixels."""
    if folder is None:
        return list(np.random.default_rng(0).integers(0, 256, (max(_BATCHES), *spec.shape), np.uint8))
    return quantize.read(folder, spec, _LIMIT, most, random.Random(0))


def passes(runtime: OpenVino, pixels: quantize.Images) -> dict[int, raw.Run]:
    """Returns a forward pass of each of `_BATCHES`, as the engine runs it."""
    _, *image = pixels.shape
    height, width, channels = image
    runner = ModelRunner(runtime, (height, width, channels), max(_BATCHES))
    runner.warm_up()
    results = np.empty((len(pixels), runner.results), np.float32)

    def make(batch: int) -> raw.Run:
        slots, tasks = list(range(batch)), [OutputKind.CLASSIFY] * batch
        return lambda: runner.run(pixels, slots, tasks, results)

    return {batch: make(batch) for batch in _BATCHES}


def table(name: str, weights: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns one row a recipe, the fp32 model first."""
    checkpoint = resolve(weights, name if name in VARIANTS else "densenet121")
    folders = (None, None) if weights.startswith("random") else (given.calibrate, given.photos)
    calibration = photos(folders[0], checkpoint.preprocessing, quantize.CALIBRATION)
    compared = photos(folders[1], checkpoint.preprocessing, given.most)
    model, image, cores = loader.load(checkpoint), checkpoint.preprocessing.shape, available_cores()
    original = conversion.convert(model, image)
    folded = int8.prepared(original)
    before = quantize.logits(original, compared)
    pixels = np.stack(compared[: max(_BATCHES)])
    rows: list[dict[str, Any]] = [{"model": name, "in fp32": "everything"}]
    served = converting.convert(model, checkpoint, describe(checkpoint, model), "fp32")
    runs = {"everything": passes(runtime(served, "fp32", cores, image), pixels)}
    for recipe in int8.recipes(folded):
        smaller = int8.quantised(folded, calibration, recipe)
        check = quantize.compare(before, quantize.logits(smaller, compared))
        rows.append({"model": name, "in fp32": recipe.fp32})
        if folders[1] is not None:
            rows[-1] |= {
                "images": check.images,
                "same top class %": round(100 * check.top1_agreement, 2),
                "largest probability change": round(check.largest_probability_change, 3),
            }
        runs[recipe.fp32] = passes(OpenVino(Graph(None, smaller), "int8", cores), pixels)
        print(rows[-1], file=sys.stderr)
    for batch in _BATCHES:
        taken = raw.measure({words: run[batch] for words, run in runs.items()}, given.seconds)
        for row in rows:
            row[f"images/s, batch {batch}"] = round(batch / taken[row["in fp32"]], 1)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", default=["demo=demo", "densenet121=random:0", "vgg16=random:0"]
    )
    parser.add_argument("--calibrate", type=Path, help="photos that show the ranges")
    parser.add_argument("--photos", type=Path, help="other photos, on which the models are compared")
    parser.add_argument("--most", type=int, default=2_500, help="of those")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each model and batch size")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for item in given.models:
        name, _, weights = item.partition("=")
        rows += table(name, weights, given)
    notes = [f"calibrated with {quantize.CALIBRATION} photos, or a few random images where none are compared"]
    report.publish("int8", "Integers", {"Recipes of quantize": rows}, notes)


if __name__ == "__main__":
    main()
