"""A known image: what a device answers to it shows one that computes wrong numbers in silence. Only
`expected` needs torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.errors import ConfigurationError
from service.models.runtimes import Pixels

if TYPE_CHECKING:
    from service.models.loader import Uint8Model

Logits = NDArray[np.float32]

#: How far answers may be from the network's in fp32 on the CPU, as ‖out - ref‖ / ‖ref‖, by precision; in int8, from
#: those that the same integers gave where they were made.
LIMITS = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 3e-2, "int8": 3e-2}
#: The canary's first answer of each bucket may be so many times further away. It is there to find a graph or a kernel
#: that computes something else, which is wrong by its whole length, and no photo is as unlike photos as it is.
_STRANGENESS = 10.0


class UntrustedError(ConfigurationError):
    """What was prepared does not compute the network."""


def image(shape: tuple[int, int, int]) -> Pixels:
    """uint8 ``[H, W, C]``, the same every time: waves and grain, so that every channel of a network answers."""
    height, width, channels = shape
    rows, columns, planes = np.ogrid[:height, :width, :channels]
    waves = np.sin(rows / 9.0 + planes) + np.cos(columns / 7.0 - planes) + np.sin((rows + columns) / 31.0)
    grain = np.random.default_rng(12).normal(0, 0.3, shape)
    pixels: Pixels = np.clip(128 + 40 * (waves + grain), 0, 255).astype(np.uint8)
    return pixels


def expected(model: Uint8Model, shape: tuple[int, int, int], *, has_head: bool) -> Logits:
    """What the network itself says, by torch in fp32 on the CPU; without a head, its features' mean."""
    import torch

    with torch.inference_mode():
        features = model.forward_features(torch.from_numpy(image(shape))[None])
        answer = model.forward_head(features) if has_head else features.mean((2, 3))
    return answer[0].numpy().astype(np.float32)


def distance(answer: Logits, reference: Logits) -> float:
    """``‖answer - reference‖ / ‖reference‖``; infinite for an answer that holds anything but numbers."""
    if not np.isfinite(answer).all():
        return float("inf")
    length = float(np.linalg.norm(reference.astype(np.float64)))
    return float(np.linalg.norm(answer.astype(np.float64) - reference)) / max(length, 1e-30)


def is_same(answer: Logits, reference: Logits, precision: str) -> bool:
    """Whether the same kernels computed the same image, in whichever row."""
    return distance(answer, reference) <= LIMITS[precision]


def right_within(precision: str) -> float:
    """How far the canary's answer may be from the network's in fp32 on the CPU."""
    return _STRANGENESS * LIMITS[precision]


def is_right(answer: Logits, expected: Logits, precision: str) -> bool:
    """Whether other kernels, in another precision, computed the same network."""
    return distance(answer, expected) <= right_within(precision)
