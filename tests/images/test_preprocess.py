"""`service.preprocess` against torchvision's own preset, to the bit."""

from __future__ import annotations

import dataclasses
import io
import json
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps

from service.errors import CheckpointError, EmptyBody, ImageTooLarge, InvalidImage, UnsupportedMediaType
from service.images import resample
from service.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    decode,
    prepare,
    resized_size,
    sniff,
)
from tests.pictures import MODES, WRITERS, encode, oriented, picture, png_bomb

LIMIT = 50_000_000
Pixels = npt.NDArray[np.uint8]


def prepared(data: bytes, spec: Preprocessing | None = None, **options: Any) -> Pixels:
    spec = spec or Preprocessing()
    out = np.full(spec.shape, 77, np.uint8)
    prepare(data, spec, out, max_pixels=LIMIT, **options)
    return out


def torchvision_pixels(data: bytes, spec: Preprocessing | None = None) -> Pixels:
    """The preset's own steps before its conversion to floats."""
    from torchvision.transforms import functional
    from torchvision.transforms.functional import InterpolationMode

    spec = spec or Preprocessing()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    if spec.resize is not None:
        size = [spec.resize] if isinstance(spec.resize, int) else list(spec.resize)
        image = functional.resize(image, size, InterpolationMode(spec.interpolation), antialias=True)
    pixels: Pixels = (
        functional.pil_to_tensor(functional.center_crop(image, list(spec.crop))).permute(1, 2, 0).numpy()
    )
    return pixels


def assert_like_torchvision(data: bytes, spec: Preprocessing | None = None) -> None:
    np.testing.assert_array_equal(prepared(data, spec), torchvision_pixels(data, spec))


def uncompressed(width: int, height: int, mode: str = "RGB") -> bytes:
    return encode(picture(mode, (width, height), seed=width * 7 + height), "PNG", compress_level=0)


SIDES = st.one_of(st.integers(1, 40), st.integers(1, 700))


@given(SIDES, SIDES, st.sampled_from(["RGB", "L", "RGBA", "P", "1"]))
@example(1, 1, "RGB")
@example(256, 256, "RGB")
@example(256, 257, "RGB")
@example(255, 700, "L")
@example(300, 1000, "RGB")  # more than twice as high as wide: Pillow 13 turns its passes round
@example(1, 700, "RGB")
@example(700, 1, "RGB")
@example(3, 700, "L")
@settings(deadline=None, max_examples=60)
def test_any_size_equals_torchvision(width: int, height: int, mode: str) -> None:
    assert_like_torchvision(uncompressed(width, height, mode))


@pytest.mark.parametrize(
    "size",
    [
        pytest.param((4000, 3000), marks=pytest.mark.slow),
        (3000, 2000),
        (1080, 2400),
        (1023, 3001),
        (5, 3000),
        (4001, 6),
    ],
    ids=str,
)
def test_large_and_narrow_sizes_equal_torchvision(size: tuple[int, int]) -> None:
    assert_like_torchvision(uncompressed(*size))


def test_the_preset_itself() -> None:
    """Its floats are our pixels, scaled and normalised: nothing else happens in it."""
    import torch
    from torchvision.transforms._presets import ImageClassification

    data = encode(picture(size=(500, 375)), "JPEG")
    expected = ImageClassification(crop_size=224, resize_size=256)(
        Image.open(io.BytesIO(data)).convert("RGB")
    )
    pixels = torch.from_numpy(prepared(data)).permute(2, 0, 1)
    mean, std = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
    assert torch.equal((pixels.float() / 255 - mean) / std, expected)


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("mode", sorted(WRITERS))
def test_every_mode_in_every_orientation(mode: str, orientation: int) -> None:
    assert_like_torchvision(oriented(picture(mode, (61, 300)), WRITERS[mode], orientation))


@given(
    SIDES, SIDES,
    st.one_of(st.none(), st.integers(1, 300), st.tuples(st.integers(1, 300), st.integers(1, 300))),
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.sampled_from(["bilinear", "bicubic", "nearest", "lanczos"]),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_any_spec_equals_torchvision(
    width: int, height: int, resize: int | tuple[int, int] | None, crop: tuple[int, int], interpolation: str
) -> None:
    """Also crops larger than the image, which are padded with black."""
    spec = Preprocessing(resize=resize, crop=crop, interpolation=interpolation)
    assert_like_torchvision(uncompressed(width, height), spec)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "lanczos"])
@pytest.mark.parametrize("size", [(3, 4001), (4001, 7), (40, 1000), (1, 4000)], ids=str)
def test_a_giant_that_is_never_made_equals_one_that_is(
    size: tuple[int, int], interpolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, spec = uncompressed(*size), Preprocessing(resize=64, crop=(56, 56), interpolation=interpolation)
    monkeypatch.setattr(resample, "MAX_WHOLE_PIXELS", 10_000)
    assert_like_torchvision(data, spec)


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (7, 65_535), (65_535, 700)], ids=str)
def test_extreme_shapes_cost_little(size: tuple[int, int]) -> None:
    """The whole resized image would take up to 16 GB."""
    data = encode(Image.new("RGB", size, (200, 100, 50)), "PNG")
    tracemalloc.start()
    out = prepared(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (out == (200, 100, 50)).all()
    assert peak < 40_000_000


def test_fifty_megapixels_stay_within_a_small_multiple() -> None:
    """In a process of its own, since Pillow's memory is not Python's. 4 bytes a pixel are 191 MiB."""
    import subprocess
    import sys

    code = (
        "import io, resource, numpy as np; from PIL import Image; from service.preprocess import *\n"
        "spec = Preprocessing(); out = np.empty(spec.shape, np.uint8)\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "data = sys.stdin.buffer.read(); before = peak()\n"
        "prepare(data, spec, out, max_pixels=50_000_000); print(peak() - before)\n"
    )
    data = encode(Image.new("RGB", (8000, 6000), (1, 2, 3)), "JPEG")
    run = subprocess.run(
        [sys.executable, "-c", "import sys\n" + code], input=data, capture_output=True, check=True
    )
    assert int(run.stdout) < 300


# -- fast --------------------------------------------------------------------------------------------


def photo(size: tuple[int, int]) -> Image.Image:
    """Edges, soft areas and some grain, as a camera makes them."""
    rng = np.random.default_rng(5)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    blocks = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.NEAREST
    )
    image = Image.blend(coarse, blocks, 0.4).filter(ImageFilter.GaussianBlur(1.2))
    grain = rng.normal(0, 3, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("size", "orientation"),
    [((500, 375), 6), ((2500, 1900), 1), ((2203, 2201), 3), *(((603, 809), turn) for turn in range(1, 9))],
    ids=str,
)
def test_fast_stays_close_to_exact(size: tuple[int, int], orientation: int) -> None:
    data = oriented(photo(size), "JPEG", orientation, quality=92)
    difference = np.abs(prepared(data).astype(int) - prepared(data, fast=True))
    assert difference.mean() < 1
    assert np.percentile(difference, 99.9) <= 10


@pytest.mark.parametrize(
    ("data", "spec"),
    [
        (encode(picture(size=(512, 512)), "PNG"), Preprocessing()),  # the box of the crop is exact
        (encode(picture(size=(2000, 1500)), "JPEG"), Preprocessing(interpolation="nearest")),
        (encode(picture(size=(2000, 1500)), "JPEG"), Preprocessing(fit="crop-resize", antialias=False)),
        (encode(picture(size=(2000, 1500)), "JPEG"), Preprocessing(resize=None)),
    ],
    ids=["square", "nearest", "keras", "no resize"],
)
def test_fast_changes_nothing_where_it_does_not_apply(data: bytes, spec: Preprocessing) -> None:
    np.testing.assert_array_equal(prepared(data, spec, fast=True), prepared(data, spec))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_fast_is_a_grey_level_from_exact_where_nothing_is_scaled(kind: str) -> None:
    data = encode(photo((500, 375)), kind)
    difference = np.abs(prepared(data).astype(int) - prepared(data, fast=True))
    assert difference.max() <= 1
    assert difference.mean() < 0.01


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 3), (257, 256), (333, 777), (60_000, 7)], ids=str)
def test_fast_takes_every_shape(size: tuple[int, int]) -> None:
    pixels = prepared(encode(Image.new("RGB", size, (9, 99, 200)), "JPEG"), fast=True)
    assert (
        np.abs(pixels.astype(int) - (9, 99, 200)).max() <= 3
    )  # one colour stays that colour, but for JPEG's rounding


# -- Keras -------------------------------------------------------------------------------------------


def keras_reference(pixels: Pixels, spec: Preprocessing) -> npt.NDArray[np.float32]:
    """``keras/src/backend/torch/image.py: resize``, written down again, without its rounding."""
    import torch

    height, width = pixels.shape[:2]
    high, wide = spec.crop
    if spec.fit == "crop-resize":
        crop_high = max(min(height, int(float(width * high) / wide)), 1)
        crop_wide = max(min(width, int(float(height * wide) / high)), 1)
        top, left = int(float(height - crop_high) / 2), int(float(width - crop_wide) / 2)
        pixels = pixels[top : top + crop_high, left : left + crop_wide]
    if spec.fit == "pad-resize":
        pad_high = max(height, int(float(width * high) / wide))
        pad_wide = max(width, int(float(height * wide) / high))
        top, left = int(float(pad_high - height) / 2), int(float(pad_wide - width) / 2)
        black = np.zeros((height + 2 * top, width + 2 * left, 3), np.uint8)
        black[top : top + height, left : left + width] = pixels
        pixels = black
    nearest = spec.interpolation == "nearest"
    options = {} if nearest else {"align_corners": False, "antialias": spec.antialias}
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()
    mode = "nearest-exact" if nearest else spec.interpolation
    result = torch.nn.functional.interpolate(tensor, size=spec.crop, mode=mode, **options)
    floats: npt.NDArray[np.float32] = result[0].permute(1, 2, 0).clamp(0, 255).numpy()
    return floats


@given(
    st.integers(8, 160), st.integers(8, 160),
    st.tuples(st.integers(8, 90), st.integers(8, 90)),
    st.sampled_from(["crop-resize", "pad-resize", "stretch"]),
    st.sampled_from(["bilinear", "bicubic", "nearest"]),
    st.booleans(),
)  # fmt: skip
@settings(deadline=None, max_examples=150)
def test_keras_fits(
    width: int, height: int, crop: tuple[int, int], fit: str, interpolation: str, antialias: bool
) -> None:
    spec = Preprocessing(crop=crop, fit=fit, interpolation=interpolation, antialias=antialias)
    image = picture(size=(width, height))
    difference = np.abs(prepared(encode(image, "PNG"), spec) - keras_reference(np.asarray(image), spec))
    assert difference.max() <= 0.5 + 1e-3


FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures"


@pytest.mark.parametrize("name", ["khub_vgg_avg", "khub_densenet_g8"])
def test_keras_own_image_converter(name: str) -> None:
    """What keras_hub 0.32 computed for the image in the fixture, before scale and offset."""
    found = [place for place in (Path(__file__).parents[1] / "fixtures", FIXTURES) if (place / name).is_dir()]
    if not found:
        pytest.skip("the fixtures of the original libraries are not here")
    expected = np.load(found[0] / name / "expected.npz")
    values = (expected["pre"][0] * np.array(IMAGENET_STD) + np.array(IMAGENET_MEAN)) * 255
    spec = Preprocessing(fit="crop-resize", crop=values.shape[:2], antialias=False)
    pixels = prepared(encode(Image.fromarray(expected["image"]), "PNG"), spec)
    np.testing.assert_allclose(pixels, values, atol=1e-3)


def test_keras_padding_of_a_line_is_never_made() -> None:
    data = encode(Image.new("RGB", (60_000, 1), (255, 255, 255)), "PNG")
    for interpolation in ("bilinear", "nearest"):
        out = prepared(data, Preprocessing(fit="pad-resize", interpolation=interpolation))
        assert out.max() <= 255 * 224 / 60_000 + 1 or interpolation == "nearest"
        assert (out[:100] == 0).all()


# -- the door ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", EmptyBody),
        (b"no image", UnsupportedMediaType),
        (encode(picture(), "PNG")[:60], InvalidImage),
        (png_bomb(50_000, 50_000), ImageTooLarge),
    ],
    ids=["empty", "text", "truncated", "bomb"],
)
def test_out_stays_as_it_is_when_there_is_no_result(data: bytes, error: type[Exception]) -> None:
    out = np.full((224, 224, 3), 77, np.uint8)
    with pytest.raises(error):
        prepare(data, Preprocessing(), out, max_pixels=LIMIT)
    assert (out == 77).all()


@pytest.mark.parametrize("out", [np.empty((224, 225, 3), np.uint8), np.empty((224, 224, 3), np.float32)])
def test_a_slot_of_another_shape_is_our_own_mistake(out: Any) -> None:
    with pytest.raises(ValueError, match=r"out must be uint8 \(224, 224, 3\)"):
        prepare(encode(picture(), "PNG"), Preprocessing(), out, max_pixels=LIMIT)


def test_a_row_of_a_larger_array_is_written_in_place() -> None:
    rows = np.zeros((3, 224, 224, 3), np.uint8)
    data = encode(picture(), "PNG")
    prepare(memoryview(data), Preprocessing(), rows[1], max_pixels=LIMIT)
    assert rows[0].max() == rows[2].max() == 0
    np.testing.assert_array_equal(rows[1], prepared(data))


def test_the_room_offers_decode_and_sniff_too() -> None:
    assert sniff(b"GIF89a") == "GIF"
    assert decode(encode(picture(), "BMP"), max_pixels=LIMIT).size == (37, 23)
    assert set(WRITERS) <= set(MODES)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 600))
def test_resized_sizes_are_torchvisions(height: int, width: int, short: int) -> None:
    from torchvision.transforms.functional import _compute_resized_output_size

    assert list(resized_size((height, width), short)) == _compute_resized_output_size(
        (height, width), [short]
    )


# -- the spec ----------------------------------------------------------------------------------------

SPECS = [
    Preprocessing(),
    Preprocessing(resize=232, interpolation="bicubic"),
    Preprocessing(resize=(299, 320), crop=(288, 300), mean=(0.5, 0.5, 0.5), std=(1, 1, 1)),
    Preprocessing(resize=None, crop=(32, 32), interpolation="nearest", antialias=False),
    Preprocessing(fit="crop-resize", antialias=False),
    Preprocessing(fit="pad-resize", interpolation="bicubic"),
    Preprocessing(fit="stretch", std=(1 / 255,) * 3),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_spec_survives_json(spec: Preprocessing) -> None:
    assert Preprocessing.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_crop_may_be_one_number_and_what_is_missing_has_defaults() -> None:
    assert Preprocessing.from_json({"crop": 299}) == Preprocessing(crop=(299, 299))
    assert Preprocessing.from_json({}) == Preprocessing()
    assert Preprocessing.from_json({"fit": "stretch", "resize": 256}).resize is None


@pytest.mark.parametrize(
    "document",
    [
        None, [], "x", {"size": 3}, {1: 2}, {"crop": 0}, {"crop": [224]}, {"crop": True}, {"crop": 224.0},
        {"crop": [224, -1]}, {"crop": [[1, 2], 3]}, {"crop": None}, {"resize": "256"}, {"resize": -1},
        {"resize": [1, 2, 3]}, {"resize": 10**9}, {"interpolation": "cubic"}, {"interpolation": ["bilinear"]},
        {"antialias": 1}, {"antialias": False}, {"fit": "cover"}, {"fit": None}, {"fit": ["stretch"]},
        {"fit": "stretch", "interpolation": "lanczos"}, {"mean": [0.5, 0.5]}, {"mean": 0.5}, {"std": [0, 1, 1]},
        {"std": [1, 1, float("nan")]}, {"mean": [1, 1, "1"]}, {"mean": None},
    ],
    ids=str,
)  # fmt: skip
def test_nonsense_is_a_checkpoint_error(document: Any) -> None:
    with pytest.raises(CheckpointError, match="the checkpoint's preprocessing"):
        Preprocessing.from_json(document)


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Preprocessing().resize = 1  # type: ignore[misc]
