"""Agreement of ``decode=fast`` with ``decode=exact``: the share of equal answers.

    python -m benchmarks.agreement --photos FOLDER [--views 10] [--models demo densenet121 vgg16]

Every photo gives a few views (random crops of 60 to 100 % of a side, some mirrored), enlarged to each size and saved
as a JPEG of quality 90; both decoders see the same bytes. The demo model is trained and answers about photographs;
the large ones have random weights, whose logits lie so close together that any change of the pixels shows. The demo
model pads its photos, which fast decoding leaves alone, so here it is given what torchvision's preset does: the
short side to 73, then the centre of 64 x 64.
"""

from __future__ import annotations

import argparse
import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from benchmarks import report
from service.models import loader
from service.models.building import describe
from service.models.checkpoints import resolve
from service.models.runner import ModelRunner
from service.models.runtimes import converting, openvino
from service.preprocess import Preprocessing, prepare
from service.settings import available_cores
from service.shared.outputs import OutputKind

#: Sizes of the JPEGs, and the share of the views that is made of each: a JPEG of 12 megapixels takes half a second
#: to write.
_SIZES = {(500, 375): 1.0, (1600, 1200): 1.0, (4000, 3000): 0.3}
_LIMIT = 50_000_000
_BATCH = 16


def views(photos: list[Path], size: tuple[int, int], each: int) -> Iterator[bytes]:
    """Yields ``each`` JPEGs of ``size`` of every photo."""
    for path in photos:
        with Image.open(path) as opened:
            photo = opened.convert("RGB")
        chance = random.Random(path.name)
        for _ in range(each):
            width = chance.uniform(0.6, 1) * min(photo.width, photo.height * size[0] / size[1])
            height = width * size[1] / size[0]
            left, top = chance.uniform(0, photo.width - width), chance.uniform(0, photo.height - height)
            view = photo.resize(size, Image.Resampling.BICUBIC, (left, top, left + width, top + height))
            buffer = io.BytesIO()
            (ImageOps.mirror(view) if chance.random() < 0.5 else view).save(buffer, "JPEG", quality=90)
            yield buffer.getvalue()


class Model:
    """A checkpoint, to be run on both decoders' pixels."""

    def __init__(self, name: str) -> None:
        self.name = name
        demo = name == "demo"
        checkpoint = resolve("demo" if demo else "random:0", "densenet121" if demo else name)
        self.spec = Preprocessing(resize=73, crop=checkpoint.preprocessing.crop) if demo else Preprocessing()
        network = loader.load(checkpoint)
        converted = converting.convert(network, checkpoint, describe(checkpoint, network), "fp32")
        served = openvino.runtime(converted, "fp32", available_cores(), self.spec.shape)
        self._runner = ModelRunner(served, self.spec.shape, _BATCH)
        self._classes = len(checkpoint.classes or ())

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns float32 ``[N, classes]`` of uint8 ``[N, H, W, 3]``."""
        results = np.empty((len(pixels), self._runner.results), np.float32)
        for start in range(0, len(pixels), _BATCH):
            slots = list(range(start, min(start + _BATCH, len(pixels))))
            self._runner.run(pixels, slots, [OutputKind.CLASSIFY] * len(slots), results)
        return results[:, : self._classes]


def decoded(images: list[bytes], spec: Preprocessing, fast: bool) -> NDArray[np.uint8]:
    pixels = np.empty((len(images), *spec.shape), np.uint8)
    for image, out in zip(images, pixels, strict=True):
        prepare(image, spec, out, max_pixels=_LIMIT, fast=fast)
    return pixels


def row(model: Model, size: tuple[int, int], images: list[bytes]) -> dict[str, Any]:
    """Returns one line of the table."""
    exact, fast = (decoded(images, model.spec, choice) for choice in (False, True))
    before, after = model.logits(exact), model.logits(fast)
    return {
        "model": model.name,
        "JPEG": f"{size[0]} x {size[1]}",
        "images": len(images),
        "same top class %": round(100 * float((before.argmax(1) == after.argmax(1)).mean()), 2),
        "mean difference, grey levels": round(float(np.abs(exact.astype(int) - fast).mean()), 3),
        "largest change of a logit / their spread": round(
            float((np.abs(before - after).max(1) / before.std(1)).mean()), 3
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True, help="a folder of JPEGs")
    parser.add_argument("--views", type=int, default=10, help="of each photo, for each size")
    parser.add_argument("--models", nargs="+", default=["demo", "densenet121", "vgg16"])
    arguments = parser.parse_args()
    photos = sorted(arguments.photos.rglob("*.jp*g"))
    models = [Model(name) for name in arguments.models]
    rows = []
    for size, share in _SIZES.items():
        images = list(views(photos, size, max(1, round(share * arguments.views))))
        rows += [row(model, size, images) for model in models]
    rows.sort(key=lambda line: arguments.models.index(line["model"]))
    notes = [
        "'spread' is the standard deviation of an image's logits; the change is the mean over the images."
    ]
    report.publish("agreement", "decode=fast beside decode=exact", {"agreement": rows}, notes)


if __name__ == "__main__":
    main()
