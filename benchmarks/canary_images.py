"""Dead channels, and weights that no answer to a canary depends on.

    python -m benchmarks.canary_images [--models densenet121=demo densenet121=random:0 vgg11=random:0]
                                       [--photos FILE.zip] [--number 60]

The photos are the samples of the package and, with ``--photos``, others of an archive. Counted are

channels    inputs of convolutions and linear layers that some photo uses and that are zero everywhere for the canaries
weights     of those that an answer to a photo depends on, the share on which no answer to a canary depends: its
            gradient is zero. The mean over the photos

by the first canary alone, by two and by all. For comparison, the first sample is the only canary; it is not among the
photos.
"""

from __future__ import annotations

import argparse
import random
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks import report
from service.host.samples import samples
from service.models import canary, loader
from service.models.checkpoints import Checkpoint, resolve
from service.models.loader import Uint8Model
from service.models.runtimes import Pixels
from service.preprocess import prepare

Flags = NDArray[np.bool_]

_MAX_PIXELS = 50_000_000
_SUFFIXES = (".webp", ".jpg", ".jpeg", ".png")


class Uses:
    """Tells which channels and weights of a network an image uses."""

    def __init__(self, model: Uint8Model) -> None:
        self._model = model
        self.layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        self._alive: dict[int, Tensor] = {}
        for number, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(self._hook(number))

    def _hook(self, number: int) -> Any:
        def note(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            used = inputs[0].detach() != 0
            self._alive[number] = used.flatten(2).any(2)[0] if used.dim() == 4 else used[0]

        return note

    def channels(self, image: Pixels) -> Flags:
        """Returns True for each input channel that is not zero everywhere. ``image`` is uint8 ``[H, W, C]``."""
        with torch.inference_mode():
            self._model(torch.from_numpy(image)[None])
        flags: Flags = torch.cat([self._alive[number] for number in range(len(self.layers))]).numpy()
        return flags

    def weights(self, image: Pixels) -> Flags:
        """Returns True for each weight on which the answer depends, layer by layer."""
        weights = [layer.weight for layer in self.layers]
        for weight in weights:
            weight.requires_grad_(True)
        logits = self._model(torch.from_numpy(image)[None])
        mix = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
        gradients = torch.autograd.grad((logits * mix).sum(), weights)
        for weight in weights:
            weight.requires_grad_(False)
        return np.concatenate([(gradient != 0).flatten().numpy() for gradient in gradients])


def photos(checkpoint: Checkpoint, archive: Path | None = None, number: int = 0) -> list[Pixels]:
    """Returns the samples, and ``number`` random photos of a zip file, prepared for the checkpoint."""
    files = [sample.path.read_bytes() for sample in samples()]
    if archive is not None:
        with zipfile.ZipFile(archive) as content:
            names = sorted(name for name in content.namelist() if name.endswith(_SUFFIXES))
            names = [name for name in names if name.startswith("val/")] or names
            files += [content.read(name) for name in random.Random(2).sample(names, number)]
    pixels = np.empty((len(files), *checkpoint.preprocessing.shape), np.uint8)
    for row, file in zip(pixels, files, strict=True):
        prepare(file, checkpoint.preprocessing, row, max_pixels=_MAX_PIXELS)
    return list(pixels)


class Unseen:
    """Counts what photos use and the canaries of one set do not."""

    def __init__(self, uses: Uses, images: Sequence[Pixels]) -> None:
        self._no_channel = ~np.any([uses.channels(image) for image in images], axis=0)
        self._no_weight = ~np.logical_or.reduce([uses.weights(image) for image in images])
        self._dead = np.zeros_like(self._no_channel)
        self._shares: list[float] = []

    def add(self, channels: Flags, weights: Flags) -> None:
        """Adds a photo that uses these."""
        self._dead |= channels & self._no_channel
        self._shares.append(float((weights & self._no_weight).sum() / weights.sum()))

    @property
    def channels(self) -> int:
        """The number of channels that some photo uses and no canary."""
        return int(self._dead.sum())

    @property
    def weights(self) -> float:
        """The share of a photo's weights that no canary depends on, the mean over photos."""
        return float(np.mean(self._shares))


def measure(name: str, archive: Path | None, number: int) -> list[dict[str, Any]]:
    """Returns a row for each set of canaries."""
    model, _, weights = name.partition("=")
    checkpoint = resolve(weights, model)
    uses = Uses(loader.load(checkpoint))
    asked = photos(checkpoint, archive, number)
    known = list(canary.images(checkpoint.preprocessing.shape))
    sets = {"the first": known[:1], "two": known[:2], "all": known, "one photo": asked[:1]}
    unseen = {title: Unseen(uses, images) for title, images in sets.items()}
    used = np.zeros_like(uses.channels(asked[0]))
    for photo in asked[1:]:
        channels, weighty = uses.channels(photo), uses.weights(photo)
        used |= channels
        for found in unseen.values():
            found.add(channels, weighty)
    return [
        {
            "model": name,
            "canaries": title,
            "photos": len(asked) - 1,
            "channels in use": int(used.sum()),
            "dead": found.channels,
            "weights unseen, %": round(100 * found.weights, 2),
        }
        for title, found in unseen.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["densenet121=demo"])
    parser.add_argument("--photos", type=Path, help="a zip file; those under val/, if it has any")
    parser.add_argument("--number", type=int, default=60, help="photos of the archive")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in arguments.models for row in measure(name, arguments.photos, arguments.number)]
    report.publish("canary_images", "What the canaries see of a network", {"unseen": rows}, [])


if __name__ == "__main__":
    main()
