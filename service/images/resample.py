"""Bit-exact resampling by Pillow's arithmetic, of a part of the result. Arithmetic on arrays: no file, no decoder.

`resize_window` makes what ``Image.resize`` makes, cut to a window of the result: 8-bit fixed point, rows and columns in
two rounded passes. (`service.images.interpolate` does the same for checkpoints that were trained with torch's resize.)

A window is the part of the result that a centre crop keeps. The cheapest way that cannot change a bit makes it:

1. Where the scale of an axis is a dyadic fraction, Pillow's own ``box`` argument names the window. Pillow
   keeps boxes as float32 and everything after that as doubles; with dyadic numbers none of it rounds, so
   the coefficients are those of the full resize. The short side is always such a case (n / 256).
2. Otherwise the axis is resized whole and cropped.
3. Where the whole would be a giant (1x20,000 with a short side of 256 has 1.3 thousand million pixels),
   `_window_alone` computes the window with Pillow's formulas (``src/libImaging/Resample.c``).

The order of Pillow's two passes changes the result, since the image between them is rounded: see `_rows_first`. Ways
1 and 2 are Pillow's own arithmetic as long as the box does not change that order. The tests compare all three with
``Image.resize``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

#: Pixels of a resized image above which only the window is computed (16 MiB of RGB in Pillow). Photos stay far below:
#: a 20:1 panorama makes 1.3 million with a short side of 256.
MAX_WHOLE_PIXELS = 4_000_000

#: Fraction bits of Pillow's fixed point: 32 bits less 8 of a grey level and 2 of head room (``PRECISION_BITS``).
PRECISION_BITS = 32 - 8 - 2

#: Integers up to here are exact in float32, the type in which Pillow keeps a box.
_EXACT_FLOAT32 = 2**24


@dataclass(frozen=True)
class Window:
    """Positions ``start`` … ``start + length - 1`` of an axis that is resized to ``resized`` pixels."""

    resized: int
    start: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.length


@dataclass(frozen=True)
class Taps:
    """One axis of a resampling: output ``i`` is the sum over ``t`` of ``source[index[i, t]] * weight[i, t]``.

    ``index`` is int64 ``[n, taps]``, each inside the source; ``weight`` has the same shape.
    """

    index: npt.NDArray[np.int64]
    weight: npt.NDArray[Any]


def triangle(x: Floats) -> Floats:
    """Pillow's BILINEAR kernel, support 1."""
    return np.maximum(1.0 - np.abs(x), 0.0)


def keys(x: Floats, a: float = -0.5) -> Floats:
    """Pillow's BICUBIC kernel, support 2 (Keys 1981). Operations are in Pillow's order."""
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def lanczos(x: Floats) -> Floats:
    """Pillow's LANCZOS kernel, support 3."""
    inside = (x >= -3.0) & (x < 3.0)
    return np.where(inside, _sinc(x) * _sinc(x / 3), 0.0)


def _sinc(x: Floats) -> Floats:
    # math.sin is the C library's, as in Pillow; NumPy's vectorised sine may differ in the last bit.
    turned = x * math.pi
    sine = np.fromiter((math.sin(value) for value in turned.flat), np.float64, turned.size)
    return np.where(x == 0.0, 1.0, sine.reshape(x.shape) / np.where(x == 0.0, 1.0, turned))


@dataclass(frozen=True)
class Filter:
    """One interpolation: Pillow's constant and, unless it is ``nearest``, its kernel with the support in pixels."""

    pillow: Image.Resampling
    kernel: Callable[[Floats], Floats] | None = None
    support: float = 0.0


FILTERS = {
    "nearest": Filter(Image.Resampling.NEAREST),
    "bilinear": Filter(Image.Resampling.BILINEAR, triangle, 1.0),
    "bicubic": Filter(Image.Resampling.BICUBIC, keys, 2.0),
    "lanczos": Filter(Image.Resampling.LANCZOS, lanczos, 3.0),
}


def resize_window(
    image: Image.Image,
    rows: Window,
    columns: Window,
    interpolation: str,
    extent: tuple[float, float, float, float] | None = None,
) -> Pixels:
    """Resizes ``image`` like ``image.resize((columns.resized, rows.resized))`` cut to two windows, bit-exact.

    ``image`` is loaded, of mode RGB or L. Returns uint8 ``[rows.length, columns.length, 3]`` (``[rows.length,
    columns.length]`` for L). No intermediate image is larger than `MAX_WHOLE_PIXELS` pixels or Pillow's first pass over
    the source.

    ``extent`` gives up bit-exactness for speed. Only this part of the image is the source (left, top, right, bottom,
    with fractions), and only the window is made; a pixel may be one grey level off where the box is rounded.
    """
    chosen = FILTERS[interpolation]
    whole = (columns.resized, rows.resized)
    exact = extent is None
    left, top, right, bottom = extent or (0, 0, *image.size)
    across, down = _box(left, right, columns, exact), _box(top, bottom, rows, exact)
    if exact and _rows_first(image.size, (across.made, down.made)) != _rows_first(image.size, whole):
        across, down = _whole(image.width, columns), _whole(image.height, rows)
    if across.made * down.made > MAX_WHOLE_PIXELS:
        return _window_alone(image, rows, columns, chosen)
    box = (across.low, down.low, across.high, down.high)
    resized = image.resize((across.made, down.made), chosen.pillow, box)
    if resized.size != (columns.length, rows.length):
        x, y = across.start, down.start
        resized = resized.crop((x, y, x + columns.length, y + rows.length))
    return np.asarray(resized)


@dataclass(frozen=True)
class _Box:
    """One axis of a Pillow resize: the source from ``low`` to ``high`` becomes ``made`` pixels.

    The window begins at pixel ``start`` of them.
    """

    low: float
    high: float
    made: int
    start: int


def _whole(source: float, window: Window) -> _Box:
    return _Box(0.0, float(source), window.resized, window.start)


def _box(first: float, last: float, window: Window, exact: bool = True) -> _Box:
    """Returns the box of the window alone where that is exact (see the head of this file) or ``exact`` is False.

    Otherwise returns the box of the whole axis. The axis goes from ``first`` to ``last``; with ``exact``, ``first``
    is 0.
    """
    source = last - first
    step = Fraction(source) / window.resized
    dyadic = step.denominator & (step.denominator - 1) == 0
    if not exact or (dyadic and window.stop * step.numerator < _EXACT_FLOAT32):
        # a sum of fractions may be rounded beyond ``last``
        high = min(first + float(window.stop * step), float(last))
        return _Box(first + float(window.start * step), high, window.length, 0)
    return _whole(source, window)


def _rows_first(source: tuple[int, int], made: tuple[int, int]) -> bool:
    """Returns True if Pillow resizes the height before the width; sizes are ``(width, height)``.

    Pillow does (since 13, pull request 9549) if the height loses more than twice the pixels that the width loses.
    """
    lost = (source[0] - made[0], source[1] - made[1])
    return lost[1] > 0 and lost[1] > 2 * lost[0]


def pillow_passes(
    size: tuple[int, int], rows: Window, columns: Window, interpolation: str
) -> list[tuple[Taps, int]]:
    """Returns Pillow's two passes over ``size`` (width, height) to a window, in order, each with its axis.

    Each pass is a weighted sum in int32 that starts at half of 2^22, is shifted right by `PRECISION_BITS`, and
    clipped to a grey level.
    """
    chosen = FILTERS[interpolation]
    passes = [(_pillow_taps(size[0], columns, chosen), 1), (_pillow_taps(size[1], rows, chosen), 0)]
    if _rows_first(size, (columns.resized, rows.resized)):
        passes.reverse()
    return passes


def _window_alone(image: Image.Image, rows: Window, columns: Window, chosen: Filter) -> Pixels:
    across = _pillow_taps(image.width, columns, chosen)
    down = _pillow_taps(image.height, rows, chosen)
    left, right = int(across.index.min()), int(across.index.max()) + 1
    top, bottom = int(down.index.min()), int(down.index.max()) + 1
    pixels = np.asarray(image.crop((left, top, right, bottom)))
    passes = [(Taps(across.index - left, across.weight), 1), (Taps(down.index - top, down.weight), 0)]
    if _rows_first(image.size, (columns.resized, rows.resized)):
        passes.reverse()
    for taps, axis in passes:
        pixels = _pillow_pass(pixels, taps, axis)
    return pixels


def _pillow_taps(source: int, window: Window, chosen: Filter) -> Taps:
    """Returns int32 fixed-point taps of a window (``precompute_coeffs`` and ``normalize_coeffs_8bpc``)."""
    if chosen.kernel is None:
        return Taps(
            _nearest_index(source, window), np.full((window.length, 1), 1 << PRECISION_BITS, np.int32)
        )
    taps = area_taps(source, window, chosen.kernel, chosen.support)
    scaled = taps.weight * (1 << PRECISION_BITS)
    # C's cast to int truncates, so Pillow first adds a half away from zero.
    return Taps(taps.index, np.trunc(scaled + np.where(scaled < 0, -0.5, 0.5)).astype(np.int32))


def area_taps(
    source: int,
    window: Window,
    kernel: Callable[[Floats], Floats],
    support: float,
    kept: type[np.float64] | type[np.float32] = np.float64,
) -> Taps:
    """Returns antialiased float64 taps. Where the axis shrinks, the kernel is widened by the scale.

    ``kept`` is the type in which the library keeps scale, centre and support: float64 in Pillow, float32 in torch. It
    decides ties about which pixel still belongs to the support.
    """
    scale = float(kept(source / window.resized))
    widening = max(scale, 1.0)
    support = float(kept(support * widening))
    center = ((np.arange(window.start, window.stop) + 0.5) * scale).astype(kept).astype(np.float64)
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    count = np.minimum((center + support + 0.5).astype(np.int64), source) - first
    tap = np.arange(int(count.max()))
    index = first[:, None] + tap
    weight = kernel((index - center[:, None] + 0.5) * (1.0 / widening))
    weight[tap >= count[:, None]] = 0.0
    # A running sum adds in the order of the C loop; np.sum would add pairwise and round differently.
    total = np.add.accumulate(weight, axis=1)[:, -1:]
    return Taps(np.minimum(index, source - 1), weight / np.where(total == 0.0, 1.0, total))


def _nearest_index(source: int, window: Window) -> npt.NDArray[np.int64]:
    """Returns the index of ``ImagingScaleAffine``: the position grows by repeated addition, which rounds."""
    scale = source / window.resized
    steps = np.full(window.stop, scale)
    steps[0] = scale * 0.5
    position = np.add.accumulate(steps)[window.start :]
    return np.minimum(position.astype(np.int64), source - 1)[:, None]


def _pillow_pass(pixels: Pixels, taps: Taps, axis: int) -> Pixels:
    """Runs ``ImagingResampleHorizontal_8bpc`` or ``…Vertical_8bpc``: fixed point, rounded, clipped."""
    total = weighted_sum(pixels, taps, axis, np.int32(1 << (PRECISION_BITS - 1)))
    return grey_levels(total >> PRECISION_BITS)


def grey_levels(values: npt.NDArray[Any]) -> Pixels:
    """Returns ``values`` clipped to 0..255 as uint8."""
    clipped: Pixels = np.clip(values, 0, 255).astype(np.uint8)
    return clipped


def weighted_sum(pixels: npt.NDArray[Any], taps: Taps, axis: int, first: np.generic) -> npt.NDArray[Any]:
    """Returns the sums of ``taps`` along ``axis``, each begun with ``first``, in the dtype of ``first``."""
    shape = [1] * pixels.ndim
    shape[axis] = -1
    result = np.full((*pixels.shape[:axis], len(taps.index), *pixels.shape[axis + 1 :]), first)
    for index, weight in zip(taps.index.T, taps.weight.T, strict=True):
        result += np.take(pixels, index, axis) * weight.reshape(shape)
    return result
