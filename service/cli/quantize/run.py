"""`imagenet-serve quantize`: a checkpoint and some images → an int8 artifact, and its agreement with the fp32 model.

_prepare    reads checkpoint and images, converts the fp32 model
_quantise   takes the fastest recipe of `service.models.runtimes.int8` that keeps the calibration images' classes
compare     judges it on images that had no part in the calibration
_write      writes the artifact, with the figures
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from service.cli import tables
from service.cli.evaluate.dataset import images_below
from service.cli.evaluate.temperature import softmax
from service.cli.progress import check_artifact_directory, read_checkpoint, working
from service.errors import ConfigurationError, RequestError
from service.preprocess import prepare
from service.settings import Settings, available_cores

if TYPE_CHECKING:
    from service.models.checkpoints import Checkpoint
    from service.models.runtimes.artifact import Converted
    from service.models.runtimes.int8 import QuantizationRecipe

#: Images for the calibration: NNCF's default. More of them change little.
CALIBRATION = 300
#: Images that measure the agreement. With 1,000, the standard error of a disagreement of 2 % is 0.4 points.
HELD_OUT = 1000
#: The least number of images; fewer neither calibrate nor prove anything.
_MIN_IMAGES = 20
#: The least share of images with the same top class, 0 to 1; below it, an artifact is written with --force only.
MIN_AGREEMENT = 0.98
#: The least share for a recipe on the calibration images. Higher than `MIN_AGREEMENT`, since they are few.
_SURE = 0.985

_BATCH = 16

Images = NDArray[np.uint8]
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Agreement:
    """The comparison of the int8 model with the fp32 one on images that it was not calibrated with."""

    images: int
    top1_agreement: float
    """The share of images with the same top class, 0 to 1."""
    top5_agreement: float
    """The mean share of the fp32 model's five best classes that are among the int8 model's five best."""
    largest_probability_change: float
    """The largest change over all images and classes."""
    mean_probability_change: float
    """The mean change of the fp32 model's top class."""


@dataclass(frozen=True)
class _Source:
    """The fp32 model, and the images that calibrate and judge its int8 counterpart."""

    checkpoint: Checkpoint
    converted: Converted
    calibration: list[Images]
    held_out: list[Images]


def run(settings: Settings, folder: Path, out: Path, *, force: bool = False, seed: int = 0) -> int:
    """Quantises the settings' model with images of ``folder`` and writes the artifact directory ``out``.

    Returns 1, and writes nothing, if the two models agree too little and ``force`` is not given. Raises `StartError`
    if the model cannot be loaded, a tool is missing or there are too few images.
    """
    from service.models.runtimes import artifact, int8

    int8.tools()  # a missing tool is reported now, not after minutes of reading images
    check_artifact_directory(out)
    source = _prepare(settings, folder, random.Random(seed))
    original = source.converted.graphs[artifact.DIRECT].model()
    recipe, smaller = _quantise(original, source.calibration)
    check = compare(logits(original, source.held_out), logits(smaller, source.held_out))
    tables.show([_row(check)], "table")
    if check.top1_agreement < MIN_AGREEMENT and not force:
        print(
            f"nothing was written: the models agree on {check.top1_agreement:.1%} of the images; below "
            f"{MIN_AGREEMENT:.0%}, writing needs --force",
            file=sys.stderr,
        )
        return 1
    _write(out, source, recipe, smaller, check, seed)
    print(f"serve it with: imagenet-serve serve {_flags(settings)}--runtime {out}", file=sys.stderr)
    return 0


def _prepare(settings: Settings, folder: Path, chance: random.Random) -> _Source:
    from service.models import loader
    from service.models.building import describe
    from service.models.runtimes import conversion, converting

    checkpoint = read_checkpoint(settings, "reading the weights")
    if checkpoint.classes is None:
        raise ConfigurationError("this checkpoint has no classes, so agreement cannot be measured on it")
    most = CALIBRATION + HELD_OUT
    images = read(folder, checkpoint.preprocessing, settings.max_image_pixels, most, chance)
    count = len(images) * CALIBRATION // most
    model = loader.load(checkpoint)
    try:
        with working("converting the model for OpenVINO"):
            converted = converting.convert(model, checkpoint, describe(checkpoint, model), "int8")
    except conversion.ConversionError as error:
        raise ConfigurationError(f"OpenVINO cannot convert this model: {error}") from error
    return _Source(checkpoint, converted, images[:count], images[count:])


def _write(
    out: Path, source: _Source, recipe: QuantizationRecipe, smaller: Any, check: Agreement, seed: int
) -> None:
    from service.models import canary
    from service.models.runtimes import artifact, manifest

    artifact.write(
        out,
        smaller,
        source.checkpoint,
        source.converted.card,
        source.converted.head,
        "int8",
        libraries=manifest.libraries("openvino", "nncf", "torch", "numpy", "pillow"),
        expected=logits(smaller, list(canary.images(source.checkpoint.preprocessing.shape))),
        fp32=recipe.fp32,
        calibration={"images": len(source.calibration), "seed": seed},
        check=asdict(check),
    )


def _quantise(original: Any, images: Sequence[Images]) -> tuple[QuantizationRecipe, Any]:
    """The fastest recipe that keeps enough of the images' classes, or else the last one, and its int8 model."""
    from service.models.runtimes import int8

    folded = int8.prepared(original)
    before = logits(folded, images)
    for recipe in int8.recipes(folded):
        with contextlib.redirect_stdout(sys.stderr):
            smaller = int8.quantised(folded, images, recipe)
        agreement = compare(before, logits(smaller, images)).top1_agreement
        print(
            f"in fp32: {recipe.fp32}; calibration images of the same class: {agreement:.1%}", file=sys.stderr
        )
        if agreement >= _SURE:
            break
    return recipe, smaller


def compare(before: Logits, after: Logits) -> Agreement:
    """Compares the logits of two models for the same images; both are float32 ``[images, classes]``."""
    old, new = softmax(before.astype(np.float64)), softmax(after.astype(np.float64))
    top = before.argmax(1)
    rows = np.arange(len(top))
    best, now = (np.argsort(-logits, axis=1, kind="stable")[:, :5] for logits in (before, after))
    shared = [len(set(a) & set(b)) / len(a) for a, b in zip(best.tolist(), now.tolist(), strict=True)]
    return Agreement(
        images=len(top),
        top1_agreement=float((top == after.argmax(1)).mean()),
        top5_agreement=float(np.mean(shared)),
        largest_probability_change=float(np.abs(new - old).max()),
        mean_probability_change=float(np.abs(new - old)[rows, top].mean()),
    )


def read(folder: Path, spec: Any, max_pixels: int, most: int, chance: random.Random) -> list[Images]:
    """Preprocesses up to ``most`` random images of ``folder`` and names unusable ones on standard error.

    Returns uint8 pixels of the shape ``spec.shape``. Raises `ConfigurationError` for fewer than `_MIN_IMAGES` images.
    """
    files = images_below(folder)
    chance.shuffle(files)
    images = []
    for path in _tracked(files[:most], "reading images"):
        pixels = np.empty(spec.shape, np.uint8)
        try:
            prepare(path.read_bytes(), spec, pixels, max_pixels=max_pixels)
        except (OSError, RequestError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            continue
        images.append(pixels)
    if len(images) < _MIN_IMAGES:
        raise ConfigurationError(
            f"'{folder}' has {len(images)} usable images; give at least {_MIN_IMAGES}, better {most}, of the kind "
            "that will be served"
        )
    return images


def logits(model: Any, images: Sequence[Images]) -> Logits:
    """The logits of an OpenVINO model, float32 ``[images, classes]``."""
    from service.models.openvino_import import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": available_cores()}
    compiled = openvino.Core().compile_model(model, "CPU", options)
    batches = [np.stack(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
    return np.concatenate([compiled(batch)[1].copy() for batch in _tracked(batches, "comparing")])


def _tracked(items: Sequence[Any], what: str) -> Iterable[Any]:
    stderr = Console(stderr=True)
    return track(items, what, console=stderr, disable=not stderr.is_terminal, transient=True)


def _row(check: Agreement) -> dict[str, Any]:
    return {
        "held-out images": check.images,
        "same top class %": round(100 * check.top1_agreement, 2),
        "of the best five %": round(100 * check.top5_agreement, 2),
        "largest probability change": round(check.largest_probability_change, 4),
        "mean change of the best": round(check.mean_probability_change, 4),
    }


def _flags(settings: Settings) -> str:
    changed = {name: getattr(settings, name) for name in ("model", "weights", "labels")}
    default = Settings.model_fields
    return "".join(f"--{name} {value} " for name, value in changed.items() if value != default[name].default)
