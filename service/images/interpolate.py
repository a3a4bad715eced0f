"""Resampling like torch's, to within a grey level. Arithmetic on arrays only: front-ends import no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.images.resample import FILTERS, Pixels, Taps, Window, area_taps, grey_levels, keys, weighted_sum


@dataclass(frozen=True)
class AxisPart:
    """Positions ``start`` … ``start + length - 1`` of a source axis. Outside of the source is black."""

    start: int
    length: int


def interpolate(
    pixels: Pixels,
    rows: AxisPart,
    columns: AxisPart,
    size: tuple[int, int],
    interpolation: str,
    antialias: bool,
) -> Pixels:
    """Resizes a part of an image like torch's ``F.interpolate(mode=interpolation, align_corners=False)``.

    uint8 ``[H, W, 3]`` → uint8 ``[*size, 3]``, rounded half to even and clipped; ``nearest`` is torch's
    ``nearest-exact``. Where a part reaches beyond the image, the outside counts as black. Weights and sums are
    float32 as in torch, whose kernels differ among themselves in the order of additions: where the true value lies
    within 1e-4 of a half, the pixel may be one level off.
    """
    down = _padded(_torch_taps(rows.length, size[0], interpolation, antialias), rows, pixels.shape[0])
    across = _padded(_torch_taps(columns.length, size[1], interpolation, antialias), columns, pixels.shape[1])
    passes = [(down, 0), (across, 1)]
    if _cost(pixels.shape, down, across) > _cost(pixels.shape[1::-1], across, down):
        passes.reverse()
    values: npt.NDArray[Any] = pixels
    for taps, axis in passes:
        values = weighted_sum(values, taps, axis, np.float32(0))
    return grey_levels(np.rint(values))


def _cost(shape: tuple[int, ...], first: Taps, second: Taps) -> int:
    """Multiplications of two passes, the first along ``shape[0]``. Their order matters for 60,000 x 1 pixels."""
    return first.weight.size * shape[1] + second.weight.size * len(first.weight)


def _padded(taps: Taps, part: AxisPart, source: int) -> Taps:
    """Returns the taps of a part as taps of the source. Taps outside of it get weight 0, since black adds nothing."""
    index = taps.index + part.start
    inside = (index >= 0) & (index < source)
    return Taps(np.clip(index, 0, source - 1), np.where(inside, taps.weight, np.float32(0)))


def _torch_taps(source: int, resized: int, interpolation: str, antialias: bool) -> Taps:
    """Returns float32 taps of one axis (ATen's ``UpSampleKernel.cpp``: ``area_pixel_compute_source_index``)."""
    if antialias and interpolation != "nearest":
        chosen = FILTERS[interpolation]
        assert chosen.kernel is not None
        whole = Window(resized, 0, resized)
        taps = area_taps(source, whole, chosen.kernel, chosen.support, np.float32)
        return Taps(taps.index, taps.weight.astype(np.float32))
    scale = np.float32(source) / np.float32(resized)
    position = scale * (np.arange(resized, dtype=np.float32) + np.float32(0.5))
    if interpolation == "nearest":
        nearest = np.minimum(position.astype(np.int64), source - 1)
        return Taps(nearest[:, None], np.ones((resized, 1), np.float32))
    position = position - np.float32(0.5)
    if interpolation == "bilinear":
        position = np.maximum(position, np.float32(0))
        reach = np.arange(0, 2)
    else:
        reach = np.arange(-1, 3)
    first = np.floor(position).astype(np.int64)
    fraction = (position - first.astype(np.float32)).astype(np.float32)
    index = np.clip(first[:, None] + reach, 0, source - 1)
    return Taps(index, _torch_weights(fraction, len(reach)))


def _torch_weights(fraction: npt.NDArray[np.float32], taps: int) -> npt.NDArray[np.float32]:
    """Returns two linear weights, or four of Keys's cubic with a = -0.75 (torch without antialiasing)."""
    one = np.float32(1)
    if taps == 2:
        return np.stack([one - fraction, fraction], axis=1)
    distance = np.stack([fraction + one, fraction, one - fraction, np.float32(2) - fraction], axis=1)
    return keys(distance.astype(np.float64), a=-0.75).astype(np.float32)
