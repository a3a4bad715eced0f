"""The canaries: known images. A wrong answer to one reveals a device that silently computes wrong numbers.

One image leaves some channels dead, and a fault in a weight that only they meet stays unseen. So there are several,
which take turns: mosaics of photos, cut so that their dead channels are different ones (training/canary.py).

Only `expected` needs torch.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.errors import ConfigurationError
from service.models.runtimes import Pixels

if TYPE_CHECKING:
    from service.models.loader import Uint8Model

Logits = NDArray[np.float32]

#: Number of known images.
IMAGES = 4
#: The images side by side, in two rows. They are stored without loss, since decoders of JPEG differ in the last bits.
SHEET = Path(__file__).with_name("canary.png")

#: Largest ‖out - ref‖ / ‖ref‖ of an answer, by precision. The reference is the network in fp32 on the CPU; for int8,
#: the answer of the same integers where they were made.
LIMITS = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 3e-2, "int8": 3e-2}
#: Factor on `LIMITS` for the canary's first answer of each bucket. That check is to find a graph or kernel that
#: computes something else, whose distance is about 1; and the canary is unlike any photo.
_STRANGENESS = 10.0


class UntrustedError(ConfigurationError):
    """The prepared model does not compute the network."""


def images(shape: tuple[int, int, int]) -> Pixels:
    """Returns the canaries for networks that take images of ``shape``, uint8 ``[IMAGES, H, W, C]``."""
    return np.array(_images(shape), order="C")


def digest(shape: tuple[int, int, int]) -> str:
    """Returns a name of 16 hex digits for the images of this shape: answers to other images have another name."""
    return hashlib.sha256(_images(shape).tobytes()).hexdigest()[:16]


@lru_cache(maxsize=2)
def _images(shape: tuple[int, int, int]) -> Pixels:
    height, width, channels = shape
    with Image.open(SHEET) as file:
        sheet = np.asarray(file.convert("RGB"))[..., :channels]
    parts = [part for row in np.vsplit(sheet, 2) for part in np.hsplit(row, 2)]
    return np.stack([resized(part, height, width) for part in parts])


def resized(pixels: Pixels, height: int, width: int) -> Pixels:
    """Returns the mean of the area of each new pixel. Sums of integers, so every machine has the same bits."""
    rows, columns = (_overlaps(*sides) for sides in zip((height, width), pixels.shape, strict=False))
    sums = np.einsum("hy,yxc->hxc", rows, pixels.astype(np.float64), optimize=True)
    sums = np.einsum("wx,hxc->hwc", columns, sums, optimize=True)
    area = pixels.shape[0] * pixels.shape[1]
    resized: Pixels = ((2 * sums + area) // (2 * area)).astype(np.uint8)
    return resized


def _overlaps(size: int, source: int) -> NDArray[np.float64]:
    """Returns how far each of ``size`` new pixels covers each old one, ``[size, source]``; a row adds up to
    ``source``."""
    new, old = np.arange(size)[:, None] * source, np.arange(source)[None] * size
    common: NDArray[np.int64] = np.minimum(new + source, old + size) - np.maximum(new, old)
    return common.clip(min=0).astype(np.float64)


def expected(model: Uint8Model, shape: tuple[int, int, int], *, has_head: bool) -> Logits:
    """Returns the network's answers by torch in fp32 on the CPU, ``[IMAGES, length]``: logits, or without a head the
    features' means."""
    import torch

    answers = []
    with torch.inference_mode():
        for one in torch.from_numpy(images(shape)).split(1):  # one at a time, which takes less memory
            features = model.forward_features(one)
            answers.append(model.forward_head(features) if has_head else features.mean((2, 3)))
    return torch.cat(answers).numpy().astype(np.float32)


def distance(answer: Logits, reference: Logits) -> float:
    """Returns ``‖answer - reference‖ / ‖reference‖``; infinity if the answer holds NaN or infinity."""
    if not np.isfinite(answer).all():
        return float("inf")
    length = float(np.linalg.norm(reference.astype(np.float64)))
    return float(np.linalg.norm(answer.astype(np.float64) - reference)) / max(length, 1e-30)


def is_same(answer: Logits, reference: Logits, precision: str) -> bool:
    """Returns True if the answer can come from the same kernels on the same image, in any row of the batch."""
    return distance(answer, reference) <= LIMITS[precision]


def right_within(precision: str) -> float:
    """Returns the largest distance of the canary's first answer from the network's in fp32 on the CPU."""
    return _STRANGENESS * LIMITS[precision]


def is_right(answer: Logits, expected: Logits, precision: str) -> bool:
    """Returns True if other kernels, in another precision, computed the same network."""
    return distance(answer, expected) <= right_within(precision)
