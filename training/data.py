"""Tiny-ImageNet-200 as four arrays: decoded once into a cache folder, later only mapped.

The archive holds ``train/<wnid>/*.webp`` and ``val/<wnid>/*.webp``, every image 64x64.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from service.labels import imagenet_classes

Split = Literal["train", "val"]

#: Side of every image in pixels.
SIDE = 64
#: One of so many training images is held out, to fit the temperature.
_HELD_OUT_EVERY = 50


@dataclass(frozen=True)
class Images:
    """A split on one device: ``pixels`` uint8 ``[N, 3, 64, 64]``, ``targets`` int64 ``[N]``."""

    pixels: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device) -> Images:
        return Images(self.pixels.to(device), self.targets.to(device))

    def part(self, held_out: bool) -> Images:
        """Returns the held-out images (every 50th, 10 of a class, never trained on), or all others."""
        chosen = is_held_out(len(self))
        rows = chosen if held_out else ~chosen
        return Images(self.pixels[rows], self.targets[rows])


def is_held_out(number: int) -> Tensor:
    """Returns which of ``number`` training images, in the archive's order, are held out: bool ``[number]``."""
    return torch.arange(number) % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1


def class_order(archive: Path) -> tuple[str, ...]:
    """Returns the archive's wnids in ImageNet's order, which is the order of the logits.

    Raises `ValueError` for a folder that is no class of ImageNet, since the service could not name it.
    """
    with zipfile.ZipFile(archive) as content:
        found = {name.split("/")[1] for name in content.namelist() if name.startswith("train/")}
    known = [label.wnid for label in imagenet_classes() if label.wnid is not None]
    strangers = found.difference(known)
    if strangers:
        raise ValueError(f"not among ImageNet's classes: {', '.join(sorted(strangers))}")
    return tuple(wnid for wnid in known if wnid in found)


def load(archive: Path, split: Split, classes: tuple[str, ...], cache: Path) -> Images:
    """Returns the split's images in the archive's order, decoded only if ``cache`` lacks them.

    Raises `ValueError` if the cache was filled with other classes or in another order.
    """
    pixels_file, targets_file = cache / f"{split}-pixels.npy", cache / f"{split}-targets.npy"
    classes_file = cache / f"{split}-classes.txt"
    if not classes_file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        pixels, targets = decode(archive, split, classes)
        np.save(pixels_file, pixels)
        np.save(targets_file, targets)
        # written last: its presence says that the cache is complete
        classes_file.write_text("\n".join(classes))
    if tuple(classes_file.read_text().split()) != classes:
        raise ValueError(f"{cache} was filled with other classes; choose another --cache or remove it")
    # Mapped, so that processes share the memory; copy-on-write, since torch warns of read-only arrays.
    pixels, targets = (np.load(file, mmap_mode="c") for file in (pixels_file, targets_file))
    return Images(torch.from_numpy(pixels), torch.from_numpy(targets))


def decode(
    archive: Path, split: Split, classes: tuple[str, ...]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Decodes pixels, uint8 ``[N, 3, 64, 64]``, and indices into ``classes``, int64 ``[N]``."""
    index = {wnid: number for number, wnid in enumerate(classes)}
    with zipfile.ZipFile(archive) as content:
        names = [
            name for name in content.namelist() if name.startswith(f"{split}/") and not name.endswith("/")
        ]
        pixels = np.empty((len(names), 3, SIDE, SIDE), np.uint8)
        for row, name in enumerate(names):
            with Image.open(io.BytesIO(content.read(name))) as image:
                pixels[row] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    targets = np.array([index[name.split("/")[1]] for name in names], np.int64)
    return pixels, targets
