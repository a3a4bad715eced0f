"""The canary: a known image. A wrong answer to it reveals a device that silently computes wrong numbers.

Only `expected` needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.errors import ConfigurationError
from service.models.runtimes import Pixels

if TYPE_CHECKING:
    from service.models.loader import Uint8Model

Logits = NDArray[np.float32]

#: Largest ‖out - ref‖ / ‖ref‖ of an answer, by precision. The reference is the network in fp32 on the CPU; for int8,
#: the answer of the same integers where they were made.
LIMITS = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 3e-2, "int8": 3e-2}
#: Factor on `LIMITS` for the canary's first answer of each bucket. That check is to find a graph or kernel that
#: computes something else, whose distance is about 1; and the canary is unlike any photo.
_STRANGENESS = 10.0


class UntrustedError(ConfigurationError):
    """The prepared model does not compute the network."""


def image(shape: tuple[int, int, int]) -> Pixels:
    """Returns the canary, uint8 ``[H, W, C]``, always the same: waves and grain, so that every channel answers."""
    height, width, channels = shape
    rows, columns, planes = np.ogrid[:height, :width, :channels]
    waves = np.sin(rows / 9.0 + planes) + np.cos(columns / 7.0 - planes) + np.sin((rows + columns) / 31.0)
    grain = np.random.default_rng(12).normal(0, 0.3, shape)
    pixels: Pixels = np.clip(128 + 40 * (waves + grain), 0, 255).astype(np.uint8)
    return pixels


def expected(model: Uint8Model, shape: tuple[int, int, int], *, has_head: bool) -> Logits:
    """Returns the network's answer by torch in fp32 on the CPU: logits, or without a head the features' mean."""
    import torch

    with torch.inference_mode():
        features = model.forward_features(torch.from_numpy(image(shape))[None])
        answer = model.forward_head(features) if has_head else features.mean((2, 3))
    return answer[0].numpy().astype(np.float32)


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
