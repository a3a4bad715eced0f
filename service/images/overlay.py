"""Lays a class activation map over its photo, as a PNG. Pillow and NumPy only."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Most pixels of the longer side. A map has a few dozen cells, and a PNG of a camera's full photo takes seconds.
MAX_SIDE = 1024
#: Share of the colours in the blend; the photo has the rest.
_OPACITY = 0.5
#: Inferno (Smith and van der Walt, matplotlib), sampled at equal steps. The page uses the same colours.
_INFERNO = np.array(
    [
        (0, 0, 4), (22, 11, 57), (66, 10, 104), (106, 23, 110), (147, 38, 103), (188, 55, 84),
        (221, 81, 58), (243, 120, 25), (252, 165, 10), (246, 215, 70), (252, 255, 164),
    ]
)  # fmt: skip

Grid = NDArray[np.float32]
Box = tuple[float, float, float, float]


def reduced(photo: Image.Image) -> Image.Image:
    """Returns ``photo`` in RGB, with no side longer than `MAX_SIDE`."""
    small = photo.convert("RGB")
    small.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return small


def overlay(photo: Image.Image, grid: Grid, box: Box) -> bytes:
    """Returns a PNG of ``photo`` (RGB) under the heat map ``grid``, float ``[h, w]``.

    ``box`` is the part of the photo that the grid covers: left, top, right, bottom as fractions. The strongest cell
    has the scale's last colour; cells at or below zero have the first. Outside of the box the photo is unchanged.
    """
    visible = _visible(box, photo.size)
    width, height = visible[2] - visible[0], visible[3] - visible[1]
    if width > 0 and height > 0:
        shares = _shares(grid).resize(
            (width, height), Image.Resampling.BILINEAR, box=_cells(visible, box, photo.size, grid)
        )
        colours = Image.fromarray(_colours(np.asarray(shares)))
        blended = Image.blend(photo.crop(visible), colours, _OPACITY)
        photo = photo.copy()
        photo.paste(blended, visible[:2])
    buffer = io.BytesIO()
    photo.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _visible(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns the pixels of a photo of ``size`` (width, height) that ``box`` covers: left, top, right, bottom."""
    left, top, right, bottom = (
        min(max(round(share * side), 0), side) for share, side in zip(box, size * 2, strict=True)
    )
    return left, top, right, bottom


def _cells(
    visible: tuple[int, int, int, int], box: Box, size: tuple[int, int], grid: Grid
) -> tuple[float, float, float, float]:
    """Returns the same rectangle in cells of the grid: left, top, right, bottom, with fractions."""
    height, width = grid.shape
    cells = []
    for number, pixel in enumerate(visible):
        axis = number % 2
        start, end, count = box[axis], box[axis + 2], (width, height)[axis]
        cells.append(min(max((pixel / size[axis] - start) / (end - start) * count, 0.0), float(count)))
    return cells[0], cells[1], cells[2], cells[3]


def _shares(grid: Grid) -> Image.Image:
    """Returns the grid as an image of floats in 0…1, relative to the strongest cell."""
    strongest = float(grid.max())
    shares = np.clip(grid / strongest, 0, 1) if strongest > 0 else np.zeros_like(grid)
    return Image.fromarray(shares.astype(np.float32))


def _colours(shares: Grid) -> NDArray[np.uint8]:
    """Maps float ``[H, W]`` in 0…1 to uint8 ``[H, W, 3]``."""
    steps = np.linspace(0, 1, len(_INFERNO))
    palette = np.stack([np.interp(np.linspace(0, 1, 256), steps, channel) for channel in _INFERNO.T], axis=1)
    return palette.round().astype(np.uint8)[(shares * 255).round().astype(np.uint8)]
