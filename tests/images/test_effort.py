"""`service.images.effort`: what costs more than it looks like is refused from its markers; what is harmless is not."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import ImageTooLarge, InvalidImage
from service.images import effort
from service.images.decode import decode, sniff
from service.images.effort import gif, jpeg, png, tiff
from tests import containers
from tests.fuzz import corpus
from tests.pictures import encode, picture, png_chunk

LIMIT = 50_000_000
#: Just below the limit of pixels.
LARGE = (7071, 7071)
MEGABYTE = 1_000_000

_LARGE_JPEG = containers.jpeg(LARGE, quality=50, subsampling=0)
_JPEG, _PROGRESSIVE = containers.jpeg((300, 200)), containers.jpeg((300, 200), progressive=True)


def scans(number: int) -> bytes:
    return b"".join(containers.empty_scan(1 + k % 3) for k in range(number))


#: By name: a file of about so many bytes, as many of the costly parts in it as they hold.
COSTLY: dict[str, Callable[[int], bytes]] = {
    "baseline scans of a large JPEG": lambda size: containers.jpeg_with(_LARGE_JPEG, scans=scans(size // 10)),
    "scans of a small JPEG": lambda size: containers.jpeg_with(_JPEG, scans=scans(size // 10)),
    "scans of a progressive JPEG": lambda size: containers.jpeg_with(
        _PROGRESSIVE, scans=_PROGRESSIVE[_PROGRESSIVE.rindex(b"\xff\xda") : -2] * (size // 40)
    ),
    "tables between scans": lambda size: containers.jpeg_with(
        _JPEG, scans=scans(2) + containers.segment(0xFE, b"") * (size // 4)
    ),
    "small EXIF segments": lambda size: containers.jpeg_with(
        _JPEG, before=containers.segment(0xE1, b"Exif\0\0" + b"A" * 10) * (size // 20)
    ),
    "large EXIF segments": lambda size: containers.jpeg_with(
        _JPEG, before=containers.segment(0xE1, b"Exif\0\0" + b"A" * 4000) * (size // 4000)
    ),
    "empty comments": lambda size: containers.jpeg_with(
        _JPEG, before=containers.segment(0xFE, b"") * (size // 4)
    ),
    "fill bytes": lambda size: containers.jpeg_with(_JPEG, before=b"\xff" * size),
    "stray bytes": lambda size: containers.jpeg_with(
        _JPEG, before=containers.segment(0xFE, b"") + b"a" * size
    ),
    "stray bytes and no frame": lambda size: b"\xff\xd8\xff\xfe\0\2" + b"a" * size,
    "lone markers": lambda size: containers.jpeg_with(_JPEG, before=b"\xff\xd8" * (size // 2)),
    "profiles": lambda size: containers.png((30, 20), before=containers.profile() * (size // 1000)),
    "texts behind the pixels": lambda size: containers.png(
        (30, 20), behind=png_chunk(b"zTXt", b"k\0\0" + b"x\x9c\x03\0\0\0\0\x01") * (size // 23)
    ),
    "empty chunks": lambda size: containers.png((30, 20), before=png_chunk(b"abCd", b"") * (size // 12)),
    "empty pixel chunks": lambda size: containers.png(
        (30, 20), behind=png_chunk(b"IDAT", b"") * (size // 12)
    ),
    "comments of one byte": lambda size: containers.gif((30, 20), containers.comment(size // 2, 1)),
    "many comments": lambda size: containers.gif((30, 20), containers.comment(1, 1) * (size // 5)),
    "bytes that are no block": lambda size: containers.gif((30, 20), b"\x01" * size),
    "strips that alternate": lambda size: containers.tiff(
        (7071, 7071), [8, 9] * (size // 8), b"\xaa" * 3_200_000, bits=1, rows=3536
    ),
    "strips of a BigTIFF that alternate": lambda size: containers.tiff(
        (7071, 7071), [16, 17] * (size // 8), b"\xaa" * 3_200_000, bits=1, rows=3536, big=True
    ),
    "tiles that repeat": lambda size: containers.tiff(
        (1000, 1000), [8] * (size // 4), b"\xaa" * 300_000, tile=(512, 512)
    ),
    "strips whose height is a float": lambda size: containers.tiff(
        (1000, 1000), [8] * (size // 4), b"\xaa" * 600_000, rows=500, rows_type=11
    ),
    "strips of an image that is one strip too low": lambda size: containers.tiff(
        (60_000, 8), [8] * (size // 4), b"\xaa" * 600_000, rows=7
    ),
}


@pytest.mark.parametrize("name", COSTLY)
@pytest.mark.parametrize("size", [MEGABYTE, 4 * MEGABYTE])
def test_what_costs_more_than_it_looks_like_is_refused_before_a_reader_is_opened(
    name: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = COSTLY[name](size)
    monkeypatch.setattr("service.images.decode._READERS", {})
    tracemalloc.start()
    with pytest.raises((InvalidImage, ImageTooLarge)) as refused:
        decode(data, max_pixels=LIMIT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "damaged" not in str(refused.value)
    assert peak < MEGABYTE


HARMLESS = {
    "scans in a comment": containers.jpeg_with(
        _PROGRESSIVE, before=containers.segment(0xFE, b"\xff\xda" * 30_000)
    ),
    "scans behind the end": containers.jpeg_with(_PROGRESSIVE, behind=scans(5000)),
    "scans in EXIF": containers.jpeg_with(_JPEG, before=containers.segment(0xE1, b"Exif\0\0" + scans(6000))),
    "ninety scans of a small JPEG": containers.jpeg_with(_JPEG, scans=scans(90)),
    "a hundred large segments": containers.jpeg_with(
        _JPEG, before=containers.segment(0xE2, bytes(65_000)) * 100
    ),
    "a thousand pixel chunks": containers.png((30, 20), behind=png_chunk(b"IDAT", bytes(8192)) * 1000),
    "profiles in pixel data": containers.png((30, 20), behind=png_chunk(b"teSt", b"iCCP" * 10_000)),
    "a comment of megabytes": containers.gif((30, 20), containers.comment(30_000, 255)),
    "strips of one row": containers.tiff((20, 9000), [8] * 9000, bytes(180_000), rows=1),
    "tiles": containers.tiff((1000, 900), [8] * 16, bytes(65_536), tile=(256, 256)),
    "one strip for all that is named twice": containers.tiff((20, 30), [8, 8], bytes(600), rows=30),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_harmless_is_decoded(name: str) -> None:
    decode(HARMLESS[name], max_pixels=LIMIT)


@pytest.mark.parametrize("name", sorted(corpus.whole()))
def test_what_encoders_write_is_not_judged(name: str) -> None:
    data = corpus.whole()[name]
    effort.judge(str(sniff(data)), data)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0xE0, 0xE1, 0xE2, 0xED, 0xFE, 0xDB]), st.binary(max_size=60), st.integers(0, 9)
        ),
        max_size=30,
    ),
    st.integers(1, 40),
)
@settings(deadline=None, max_examples=100)
def test_segments_fill_and_scans_are_counted_as_they_were_written(
    segments: list[tuple[int, bytes, int]], number: int
) -> None:
    before = b"".join(
        b"\xff" * fill + containers.segment(marker, content) for marker, content, fill in segments
    )
    data = containers.jpeg_with(_LARGE_JPEG, before=before, scans=scans(number))
    assert refused(data) == (number * LARGE[0] * LARGE[1] > jpeg.MAX_SCANNED)


def refused(data: bytes) -> bool:
    try:
        effort.judge(str(sniff(data)), data)
    except InvalidImage:
        return True
    return False


@given(
    st.integers(1, 70), st.integers(1, 70), st.integers(1, 80), st.integers(0, 3), st.booleans(),
    st.sampled_from("<>"), st.booleans(),
)  # fmt: skip
@settings(deadline=None, max_examples=100)
def test_a_tiff_may_name_as_many_parts_as_its_image_has(
    width: int, height: int, side: int, more: int, big: bool, endian: str, tiled: bool
) -> None:
    across, down = (-(-width // side) if tiled else 1), -(-height // side)
    parts = across * down
    big = big and endian == "<"  # Pillow reads no BigTIFF of the other byte order
    start = 16 if big else 8
    layout = {"tile": (side, side)} if tiled else {"rows": side}
    data = containers.tiff(
        (width, height), [start] * (parts + more), bytes(6400), big=big, endian=endian, **layout
    )
    assert refused(data) == (more > 0 and parts > 1)
    if not more:
        assert decode(data, max_pixels=LIMIT).size == (width, height)


@given(st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "BMP"]), st.binary(max_size=400), st.integers(0, 2**32))
@settings(deadline=None, max_examples=150)
def test_rubbish_is_judged_without_a_crash(name: str, content: bytes, seed: int) -> None:
    data = bytearray(encode(picture(), name))
    rng = random.Random(seed)
    for _ in range(rng.randrange(8)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    for damaged in (bytes(data), bytes(data[: rng.randrange(len(data))]), bytes(data[:20]) + content):
        try:
            effort.judge(name, damaged)
        except (InvalidImage, ImageTooLarge):
            continue


def test_the_limits_leave_room_for_what_encoders_write() -> None:
    """Ten megabytes of the largest segments, of libpng's chunks and of GIF's blocks; rows of the highest image."""
    assert min(jpeg.MAX_EXIF, jpeg.MAX_SEGMENTS) > 10 * MEGABYTE / 65_535
    assert png.MAX_CHUNKS > 10 * MEGABYTE / 8192
    assert gif.MAX_BLOCKS > 10 * MEGABYTE / 255
    assert tiff.MAX_PARTS >= 65_535
