"""`service.images.resample` and `interpolate` against Pillow and torch themselves."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from service.images import resample
from service.images.interpolate import AxisPart, interpolate
from service.images.resample import FILTERS, Window, resize_window

SIDES = st.one_of(st.integers(1, 12), st.integers(1, 400))


def noise(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    resized = draw(SIDES)
    start = draw(st.integers(0, resized - 1))
    return Window(resized, start, draw(st.integers(1, resized - start)))


@given(SIDES, SIDES, windows(), windows(), st.sampled_from(sorted(FILTERS)), st.booleans())
@example(40, 6, Window(5, 0, 5), Window(4, 0, 4), "bilinear", True)  # Pillow 13 shrinks the height first
@example(900, 6, Window(256, 16, 224), Window(4, 0, 4), "bilinear", False)  # and so does 12.3 here
@settings(deadline=None, max_examples=400)
def test_a_window_equals_pillows_resize_cropped(
    height: int, width: int, rows: Window, columns: Window, name: str, alone: bool
) -> None:
    image = Image.fromarray(noise(height, width))
    whole = np.asarray(image.resize((columns.resized, rows.resized), FILTERS[name].pillow))
    if alone:
        window = resample._window_alone(image, rows, columns, FILTERS[name])
    else:
        window = resize_window(image, rows, columns, name)
    np.testing.assert_array_equal(window, whole[rows.start : rows.stop, columns.start : columns.stop])


@given(st.integers(200, 3000), st.integers(200, 3000), st.sampled_from(["RGB", "L"]))
@settings(deadline=None, max_examples=15)
def test_the_short_side_needs_no_more_than_the_window(height: int, width: int, mode: str) -> None:
    """The boxes that are used for real: 224 of 256, and what they must not change."""
    image = Image.fromarray(noise(height, width)).convert(mode)
    scale = 256 / min(height, width)
    size = (256 if width <= height else int(width * scale), 256 if height <= width else int(height * scale))
    rows, columns = Window(size[1], (size[1] - 224) // 2, 224), Window(size[0], (size[0] - 224) // 2, 224)
    whole = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    window = resize_window(image, rows, columns, "bilinear")
    np.testing.assert_array_equal(window, whole[rows.start : rows.stop, columns.start : columns.stop])


@pytest.mark.parametrize(
    ("source", "resized", "whole"), [(1080, 256, False), (1920, 455, True), (500, 375, True)]
)
def test_only_dyadic_scales_are_boxed(source: int, resized: int, whole: bool) -> None:
    box = resample._box(0, source, Window(resized, 16, 224))
    assert (box.made == resized) is whole


@given(
    st.integers(2, 200), st.integers(2, 200), st.integers(2, 120), st.integers(2, 120),
    st.sampled_from(["nearest", "bilinear", "bicubic"]), st.booleans(),
)  # fmt: skip
@settings(deadline=None, max_examples=150)
def test_interpolate_equals_torch_but_for_ties(
    height: int, width: int, high: int, wide: int, name: str, antialias: bool
) -> None:
    """From 2 pixels a side: torch 2.13 mistakes the memory format of one-pixel-wide tensors.

    torch computes positions in float32, so a weight is off by about a position's last bit.
    """
    torch = pytest.importorskip("torch")
    pixels = noise(height, width)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    nearest = name == "nearest"
    options = {} if nearest else {"align_corners": False, "antialias": antialias}
    mode = "nearest-exact" if nearest else name
    expected = torch.nn.functional.interpolate(tensor, size=(high, wide), mode=mode, **options)[0]
    expected = expected.permute(1, 2, 0).clamp(0, 255).numpy()
    result = interpolate(pixels, AxisPart(0, height), AxisPart(0, width), (high, wide), name, antialias)
    last_bit = max(height, width) * 2.0**-23
    assert np.abs(result - expected).max() <= 0.5 + 4 * 255 * last_bit


def test_padding_is_a_black_border_that_is_never_made() -> None:
    pixels = noise(30, 50)
    bordered = np.zeros((50, 50, 3), np.uint8)
    bordered[10:40] = pixels
    for name in ("nearest", "bilinear", "bicubic"):
        expected = interpolate(bordered, AxisPart(0, 50), AxisPart(0, 50), (23, 31), name, False)
        result = interpolate(pixels, AxisPart(-10, 50), AxisPart(0, 50), (23, 31), name, False)
        np.testing.assert_array_equal(result, expected)
    assert (
        interpolate(pixels[:1, :1], AxisPart(-30_000, 65_000), AxisPart(0, 1), (8, 8), "bilinear", True).max()
        == 0
    )
