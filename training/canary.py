"""The canaries' images: mosaics of four crops of sample photos each, found by a search with the demo model.

    python -m training.canary make                                   writes service/models/canary.png from `CROPS`
    python -m training.canary search --photos tiny-imagenet-200.zip  prints better crops, if it finds some

The search changes one crop at a time and keeps what leaves fewer weights unseen by two images that follow each other
(benchmarks/canary_images.py says what that is). The answers in converted models belong to these very pixels: with
others, conversions in the cache are made again, and older int8 artifacts are served without that comparison.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.canary_images import Uses, photos
from service.host.samples import samples
from service.models import canary, loader
from service.models.checkpoints import resolve
from service.models.runtimes import Pixels

#: The number of the sample photo, the crop's top and left corner, and its side in pixels.
Crop = tuple[int, int, int, int]
#: Pixels of an image's side, and of a crop's in it: 224 is the networks' usual size.
_SIDE = 224
_PART = _SIDE // 2
#: Levels of a colour that become one, which halves the file.
_COARSE = 8
#: The least side of a crop, in pixels.
_LEAST = 20

CROPS: tuple[tuple[Crop, ...], ...] = (
    ((2, 176, 3, 78), (1, 64, 338, 296), (1, 232, 8, 93), (1, 62, 238, 20)),
    ((1, 270, 87, 85), (2, 9, 163, 37), (0, 164, 234, 200), (3, 56, 144, 96)),
    ((3, 158, 217, 75), (2, 62, 56, 160), (1, 226, 117, 134), (1, 190, 475, 60)),
    ((3, 107, 12, 27), (0, 0, 16, 400), (3, 10, 146, 81), (3, 4, 215, 73)),
)


class Mosaics:
    """Cuts mosaics out of the sample photos."""

    def __init__(self) -> None:
        self._photos = [np.asarray(Image.open(sample.path).convert("RGB")) for sample in samples()]

    def mosaic(self, crops: Sequence[Crop]) -> Pixels:
        """Returns four crops as one image, uint8 ``[224, 224, 3]``."""
        upper, lower = (np.hstack([self._cut(crop) for crop in row]) for row in (crops[:2], crops[2:]))
        pixels: Pixels = np.vstack([upper, lower])
        return pixels // _COARSE * _COARSE + _COARSE // 2

    def sheet(self, crops: Sequence[Sequence[Crop]]) -> Pixels:
        """Returns all images side by side, in two rows."""
        images = [self.mosaic(of_image) for of_image in crops]
        return np.vstack([np.hstack(images[:2]), np.hstack(images[2:])])

    def _cut(self, crop: Crop) -> Pixels:
        number, top, left, side = crop
        part = Image.fromarray(self._photos[number][top : top + side, left : left + side])
        kind = Image.Resampling.BOX if side >= _PART else Image.Resampling.BILINEAR
        return np.asarray(part.resize((_PART, _PART), kind))

    def another(self, crop: Crop, chance: np.random.Generator) -> Crop:
        """Returns a random crop, or one near ``crop``, every other time."""
        if chance.integers(2):
            number = int(chance.integers(len(self._photos)))
            height, width = self._photos[number].shape[:2]
            side = float(np.exp(chance.uniform(np.log(_LEAST), np.log(min(height, width)))))
            top, left = chance.uniform(0, height - side), chance.uniform(0, width - side)
        else:
            number, top, left, side = crop
            side *= float(np.exp(chance.normal(0, 0.2)))
            top, left = np.array([top, left]) + chance.normal(0, 0.15 * side, 2)
        return self._inside(number, float(top), float(left), side)

    def _inside(self, number: int, top: float, left: float, side: float) -> Crop:
        height, width = self._photos[number].shape[:2]
        whole = int(np.clip(side, _LEAST, min(height, width)))
        return number, int(np.clip(top, 0, height - whole)), int(np.clip(left, 0, width - whole)), whole


class Search:
    """The share of the photos' weights that the images do not see, and steps towards a smaller one."""

    def __init__(self, archive: Path, number: int) -> None:
        checkpoint = resolve("demo", "densenet121")
        self._shape = checkpoint.preprocessing.shape
        self._uses = Uses(loader.load(checkpoint))
        self._weights = self._weigh(
            [self._uses.weights(photo) for photo in photos(checkpoint, archive, number)]
        )
        self._mosaics = Mosaics()

    def _weigh(self, used: Sequence[NDArray[np.bool_]]) -> NDArray[np.float32]:
        """Returns each weight's share of its layer's uses by photos; layers count alike and add up to 1."""
        counts = np.sum(used, axis=0, dtype=np.float32)
        ends = np.cumsum([layer.weight.numel() for layer in self._uses.layers])[:-1]
        shares = [part / part.sum() / len(self._uses.layers) for part in np.split(counts, ends)]
        return np.concatenate(shares)

    def unseen(self, crops: Sequence[Crop]) -> NDArray[np.bool_]:
        """Returns True for each weight that the mosaic of these crops does not see."""
        return ~self._uses.weights(canary.resized(self._mosaics.mosaic(crops), *self._shape[:2]))

    def score(self, unseen: Sequence[NDArray[np.bool_]]) -> float:
        """Returns what is to become small: the shares unseen by pairs (the worst, and the mean), by one, and by all."""
        follow = [*unseen[1:], unseen[0]]
        pairs = [self._share(one & other) for one, other in zip(unseen, follow, strict=True)]
        singles = [self._share(one) for one in unseen]
        rest = self._share(np.logical_and.reduce(unseen))
        return max(pairs) + float(np.mean(pairs)) + 0.3 * float(np.mean(singles)) + rest

    def _share(self, unseen: NDArray[np.bool_]) -> float:
        return float(self._weights[unseen].sum())

    def run(self, seconds: float, seed: int) -> tuple[tuple[Crop, ...], ...]:
        """Returns the best crops that were found in this time, starting at `CROPS`."""
        chance, crops = np.random.default_rng(seed), [list(of_image) for of_image in CROPS]
        unseen = [self.unseen(of_image) for of_image in crops]
        best, until = self.score(unseen), time.monotonic() + seconds
        print(f"{best:.5f} now")
        while time.monotonic() < until:
            image, place = chance.integers(len(crops)), chance.integers(len(crops[0]))
            tried = [list(of_image) for of_image in crops]
            tried[image][place] = self._mosaics.another(tried[image][place], chance)
            others = [*unseen]
            others[image] = self.unseen(tried[image])
            score = self.score(others)
            if score < best:
                best, crops, unseen = score, tried, others
                print(f"{best:.5f}", flush=True)
        return tuple(tuple(of_image) for of_image in crops)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("make", "search"))
    parser.add_argument("--photos", type=Path, help="a zip file of photos, for search")
    parser.add_argument("--number", type=int, default=100, help="photos of it")
    parser.add_argument("--seconds", type=float, default=200.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "make":
        Image.fromarray(Mosaics().sheet(CROPS)).save(canary.SHEET, optimize=True)
    elif arguments.photos is None:
        parser.error("search needs --photos")
    else:
        for of_image in Search(arguments.photos, arguments.number).run(arguments.seconds, arguments.seed):
            print(f"    {of_image},")


if __name__ == "__main__":
    main()
