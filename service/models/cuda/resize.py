"""Pillow's resize and crop of a batch of photos on a device: each photo's size is its own, the result's is one.

`by_torch` runs anywhere and is the reference. `by_triton` makes a whole batch in one launch; for 32 photos torch needs
some 1,300, and the host cannot start that many as fast as the decoder delivers photos.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from service.images.resample import PRECISION_BITS, Taps, pillow_passes
from service.preprocess import Preprocessing, windows

#: Number of photo sizes whose taps are cached.
_KEPT = 256


@dataclass(frozen=True)
class Axis:
    """One pass on a device: output ``i`` is the sum over ``t`` of ``source[index[t, i]] * weight[t, i]``.

    Both are int32 ``[taps, n]``; ``weight`` is in Pillow's fixed point. ``axis`` is 0 for rows and 1 for columns.
    """

    index: Tensor
    weight: Tensor
    axis: int


@dataclass(frozen=True)
class Passes:
    """The two passes of a photo size, in Pillow's order, and where their result begins in the crop."""

    first: Axis
    second: Axis
    top: int
    left: int


#: Returns uint8 ``[N, H, W, 3]`` of photos uint8 ``[h, w, 3]``, each with its passes.
Resize = Callable[[Sequence[Tensor], Sequence[Passes], tuple[int, int, int]], Tensor]


class PassCache:
    """The passes of the photo sizes that came last, for one preprocessing on one device."""

    def __init__(self, spec: Preprocessing, device: torch.device) -> None:
        self._spec, self._device = spec, device
        self.of: Callable[[int, int], Passes] = lru_cache(_KEPT)(self._make)
        """Returns the passes of photos with this height and width."""

    def _make(self, height: int, width: int) -> Passes:
        rows, columns, top, left = windows((height, width), self._spec)
        first, second = pillow_passes((width, height), rows, columns, self._spec.interpolation)
        return Passes(self._moved(*first), self._moved(*second), top, left)

    def _moved(self, taps: Taps, axis: int) -> Axis:
        index, weight = (
            torch.from_numpy(np.ascontiguousarray(part.T, np.int32)).to(self._device)
            for part in (taps.index, taps.weight)
        )
        return Axis(index, weight, axis)


@torch.inference_mode()
def by_torch(photos: Sequence[Tensor], passes: Sequence[Passes], shape: tuple[int, int, int]) -> Tensor:
    """Resizes one photo after another, a `Resize`."""
    out = torch.zeros((len(photos), *shape), dtype=torch.uint8, device=photos[0].device)
    for photo, plan, result in zip(photos, passes, out, strict=True):
        made = _weighted(_weighted(photo, plan.first), plan.second)
        height, width, _ = made.shape
        result[plan.top : plan.top + height, plan.left : plan.left + width] = made
    return out


def _weighted(photo: Tensor, along: Axis) -> Tensor:
    """Runs one pass of `service.images.resample.pillow_passes`."""
    view, size = [1, 1, 1], list(photo.shape)
    view[along.axis], size[along.axis] = -1, along.index.shape[1]
    total = torch.full(size, 1 << (PRECISION_BITS - 1), dtype=torch.int32, device=photo.device)
    for places, factors in zip(along.index, along.weight, strict=True):
        total += photo.index_select(along.axis, places).int() * factors.view(view)
    return (total >> PRECISION_BITS).clamp_(0, 255).to(torch.uint8)
