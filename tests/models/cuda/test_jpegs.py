"""``decode=gpu`` without a GPU: the same arithmetic on torch's CPU, and a codec of the same contract by Pillow."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from service.images.jpegs import plain
from service.models.cuda import jpegs
from service.preprocess import Preprocessing, prepare

SPEC, CPU = Preprocessing(resize=40, crop=(32, 32)), torch.device("cpu")


def by_pillow(files: Sequence[bytes]) -> list[Tensor | None]:
    photos = [Image.open(io.BytesIO(data)).convert("RGB") for data in files]
    return [torch.from_numpy(np.asarray(photo).copy()) for photo in photos]


def nearest_chroma(files: Sequence[bytes]) -> list[Tensor | None]:
    """As decoders without fancy upsampling do: each chroma sample stands for a square."""
    found: list[Tensor | None] = []
    for data in files:
        luma, *chroma = Image.open(io.BytesIO(data)).convert("YCbCr").split()
        small = [
            plane.resize((-(-plane.width // 4), -(-plane.height // 4)), Image.Resampling.BOX)
            for plane in chroma
        ]
        planes = [luma, *(plane.resize(luma.size, Image.Resampling.NEAREST) for plane in small)]
        merged = Image.merge("YCbCr", planes).convert("RGB")
        found.append(torch.from_numpy(np.asarray(merged).copy()))
    return found


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def saved(picture: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", **options)
    return file.getvalue()


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 130),
    height=st.integers(1, 130),
    resize=st.one_of(st.none(), st.integers(1, 70), st.tuples(st.integers(1, 70), st.integers(1, 70))),
    crop=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
)
def test_the_device_s_resize_is_the_processor_s_to_the_bit(
    width: int, height: int, resize: Any, crop: tuple[int, int], interpolation: str
) -> None:
    spec = Preprocessing(resize=resize, crop=crop, interpolation=interpolation)
    data = saved(photo(width, height))
    wanted = np.empty(spec.shape, np.uint8)
    prepare(data, spec, wanted, max_pixels=1 << 20)
    got = np.empty(spec.shape, np.uint8)
    assert jpegs.JpegDecoder(by_pillow, spec, CPU).decode([data], [got]) == [True]
    assert (got == wanted).all()


def test_a_decoder_that_agrees_is_trusted_and_others_are_not() -> None:
    jpegs.prove(jpegs.JpegDecoder(by_pillow, SPEC, CPU), SPEC)
    with pytest.raises(ValueError, match="grey levels off"):
        jpegs.prove(jpegs.JpegDecoder(nearest_chroma, SPEC, CPU), SPEC)
    with pytest.raises(ValueError, match="does not decode"):
        jpegs.prove(jpegs.JpegDecoder(lambda files: [None] * len(files), SPEC, CPU), SPEC)


@pytest.mark.parametrize(
    ("spec", "device", "says"),
    [
        (SPEC, "cpu", "runs on the CPU"),
        (Preprocessing(crop=(32, 32), fit="stretch"), "cuda", "torch's arithmetic"),
        (SPEC, "cuda", "not installed"),
    ],
)
def test_where_there_is_no_lane_the_reason_is_a_sentence(
    spec: Preprocessing, device: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nvidia", None)
    with pytest.raises(ValueError, match=says):
        jpegs.open_decoder(spec, torch.device(device))


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x010F] = "maker"
    tags[0x0112] = orientation
    return tags


PLAIN = [{"subsampling": s, "progressive": p} for s in (0, 1, 2) for p in (False, True)]


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 60), height=st.integers(1, 60), options=st.sampled_from([*PLAIN, {"exif": exif(1)}])
)
def test_plain_files_are_known_by_their_markers(width: int, height: int, options: dict[str, Any]) -> None:
    data = saved(photo(width, height), **options)
    assert plain(data) == (height, width)
    assert plain(saved(photo(width, height).convert("L"))) == (height, width)
    for cut in (2, 10, len(data) // 3):
        assert plain(data[:cut]) in (None, (height, width))


def test_all_that_is_known_is_plain() -> None:
    assert all(plain(data) for _, data in jpegs.known())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        saved(photo(9, 9).convert("CMYK")),
        saved(photo(9, 9), exif=exif(6)),
        b"\xff\xd8\xff\xc9" + bytes(40),
        saved(photo(9, 9)).replace(b"\xff\xc0", b"\xff\xc3"),
        saved(photo(9, 9), keep_rgb=True),
    ],
)
def test_everything_else_is_for_the_processor(data: bytes) -> None:
    assert plain(data) is None


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 700), st.binary(min_size=1, max_size=8))
def test_no_bytes_whatever_raise(noise: bytes, at: int, damage: bytes) -> None:
    plain(b"\xff\xd8\xff" + noise)
    data = saved(photo(9, 9), exif=exif(1))
    plain(data[:at] + damage + data[at + len(damage) :])
