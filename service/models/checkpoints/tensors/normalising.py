"""Mean and standard deviation of a normalising module that precedes a network."""

from __future__ import annotations

import logging
import re

from torch import Tensor

from service.models.checkpoints.tensors.search import Flat
from service.preprocess import IMAGENET_MEAN, IMAGENET_STD

_log = logging.getLogger(__name__)

Normalising = tuple[tuple[float, float, float], tuple[float, float, float]]

_MEAN = re.compile(r"((?:.*\.)?(?:\w*_)?)mean")

#: A mean above this belongs to grey levels from 0 to 255.
_UNIT = 1.5


def inside(flat: Flat, within: str, name: str) -> Normalising | None:
    """Returns mean and deviation, each (red, green, blue) for pixels in [0, 1], from the module ``within``; else
    None."""
    for key, mean in flat.items():
        match = _MEAN.fullmatch(key)
        std = flat.get(f"{match[1]}std") if match and key.startswith(within) else None
        if std is None or mean.numel() != 3 or std.numel() != 3:
            continue
        scale = 255.0 if float(mean.max()) > _UNIT else 1.0
        found = _triple(mean, scale), _triple(std, scale)
        if found != (_rounded(IMAGENET_MEAN), _rounded(IMAGENET_STD)) and all(
            value > 0 for value in found[1]
        ):
            _log.warning(
                "%s normalises its images by itself, with %s and %s; add ?preprocessing= if that is wrong",
                *(name, *found),
            )
            return found
    return None


def _triple(values: Tensor, scale: float) -> tuple[float, float, float]:
    red, green, blue = (round(float(value) / scale, 6) for value in values.flatten())
    return red, green, blue


def _rounded(values: tuple[float, float, float]) -> tuple[float, ...]:
    return tuple(round(value, 6) for value in values)
