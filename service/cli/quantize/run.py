"""`imagenet-serve quantize`: a checkpoint and some images → an int8 artifact, with what that costs.

`service.models.runtimes.int8` has several recipes. The fastest one that keeps the classes of the calibration images is
taken. Images that had no part in it then tell how often the two models agree, and that stands in the artifact.
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
from service.cli.progress import working
from service.errors import ConfigurationError, RequestError
from service.preprocess import prepare
from service.settings import Settings, available_cores

if TYPE_CHECKING:
    from service.models.runtimes.int8 import Recipe

#: Calibration needs few images, and more change little: NNCF's own default is 300.
CALIBRATION = 300
#: Images that agreement is measured on. With 1,000, a disagreement of two in a hundred is 0.4 % uncertain.
HELD_OUT = 1000
#: Fewer images than this calibrate nothing and prove nothing.
_FEWEST = 20
#: Below this share of images with the same top class, an artifact is only written by force.
LEAST_AGREEMENT = 0.98
#: Share of the calibration images that makes a recipe good enough: they are few, so it has to be some more.
_SURE = 0.985

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
_BATCH = 16

Images = NDArray[np.uint8]
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Check:
    """The int8 model beside the fp32 one, on images that it was not calibrated with."""

    images: int
    top1_agreement: float
    """Share of images with the same top class, 0 to 1."""
    top5_agreement: float
    """Mean share of the fp32 model's five best classes among int8's five best."""
    largest_probability_change: float
    """Over all images and classes."""
    mean_probability_change: float
    """Of the fp32 model's top class."""


def run(settings: Settings, folder: Path, out: Path, *, force: bool = False, seed: int = 0) -> int:
    """Quantises the settings' model with images of ``folder`` and writes the artifact directory ``out``.

    Returns 1, and writes nothing, when the two models agree too little, unless ``force``. Raises `StartError`
    when the model or the tools cannot be had, or there are too few images.
    """
    from service.models import canary, loader
    from service.models.building import describe
    from service.models.checkpoints import resolve
    from service.models.runtimes import artifact, conversion, converting, int8, manifest

    int8.tools()  # now, and not after minutes of reading images
    if out.exists() and not (out / "about.json").exists():
        raise ConfigurationError(f"'{out}' exists and is no artifact; choose another folder")
    with working("reading the weights") as work:
        checkpoint = resolve(
            settings.weights, settings.named_model, labels=settings.labels, progress=work.downloaded
        )
    if checkpoint.classes is None:
        raise ConfigurationError("this checkpoint has no classes, so agreement cannot be measured on it")
    chance = random.Random(seed)
    most = CALIBRATION + HELD_OUT
    images = read(folder, checkpoint.preprocessing, settings.max_image_pixels, most, chance)
    count = len(images) * CALIBRATION // most
    calibration, held_out = images[:count], images[count:]
    model = loader.load(checkpoint)
    try:
        with working("converting the model for OpenVINO"):
            converted = converting.convert(model, checkpoint, describe(checkpoint, model), "int8")
    except conversion.ConversionError as error:
        raise ConfigurationError(f"OpenVINO cannot convert this model: {error}") from error
    original = converted.graphs[artifact.DIRECT].model()
    recipe, smaller = _quantise(original, calibration)
    check = compare(logits(original, held_out), logits(smaller, held_out))
    tables.show([_row(check)], "table")
    if check.top1_agreement < LEAST_AGREEMENT and not force:
        print(
            f"nothing was written: the models agree on {check.top1_agreement:.1%} of the images, and less than "
            f"{LEAST_AGREEMENT:.0%} wants --force",
            file=sys.stderr,
        )
        return 1
    artifact.write(
        out,
        smaller,
        checkpoint,
        converted.card,
        converted.head,
        "int8",
        libraries=manifest.libraries("openvino", "nncf", "torch", "numpy", "pillow"),
        expected=logits(smaller, [canary.image(checkpoint.preprocessing.shape)])[0],
        fp32=recipe.fp32,
        calibration={"images": len(calibration), "seed": seed},
        check=asdict(check),
    )
    print(f"serve it with: imagenet-serve serve {_flags(settings)}--runtime {out}", file=sys.stderr)
    return 0


def _quantise(original: Any, images: Sequence[Images]) -> tuple[Recipe, Any]:
    """The fastest recipe that keeps enough of the images' classes, or else the closest one, and its model."""
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


def compare(before: Logits, after: Logits) -> Check:
    """How far ``after`` is from ``before``; both are float32 ``[images, classes]``, in the same order."""
    old, new = _softmax(before), _softmax(after)
    top = before.argmax(1)
    rows = np.arange(len(top))
    best, now = (np.argsort(-logits, axis=1, kind="stable")[:, :5] for logits in (before, after))
    shared = [len(set(a) & set(b)) / len(a) for a, b in zip(best.tolist(), now.tolist(), strict=True)]
    return Check(
        images=len(top),
        top1_agreement=float((top == after.argmax(1)).mean()),
        top5_agreement=float(np.mean(shared)),
        largest_probability_change=float(np.abs(new - old).max()),
        mean_probability_change=float(np.abs(new - old)[rows, top].mean()),
    )


def _softmax(logits: Logits) -> NDArray[np.float64]:
    exponents = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    result: NDArray[np.float64] = exponents / exponents.sum(axis=1, keepdims=True)
    return result


def read(folder: Path, spec: Any, max_pixels: int, most: int, chance: random.Random) -> list[Images]:
    """Pixels as the service makes them, of a random choice of the folder's images; unusable ones are named.

    Raises `ConfigurationError` when there are too few.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
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
    if len(images) < _FEWEST:
        raise ConfigurationError(
            f"'{folder}' has {len(images)} usable images; give at least {_FEWEST}, better {most}, of the kind "
            "that will be served"
        )
    return images


def logits(model: Any, images: Sequence[Images]) -> Logits:
    """float32 ``[images, classes]`` by an OpenVINO model."""
    from service.models.openvino_import import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": available_cores()}
    compiled = openvino.Core().compile_model(model, "CPU", options)
    batches = [np.stack(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
    return np.concatenate([compiled(batch)[1].copy() for batch in _tracked(batches, "comparing")])


def _tracked(items: Sequence[Any], what: str) -> Iterable[Any]:
    stderr = Console(stderr=True)
    return track(items, what, console=stderr, disable=not stderr.is_terminal, transient=True)


def _row(check: Check) -> dict[str, Any]:
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
