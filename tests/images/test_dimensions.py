"""Headers that are read without a decoder, and those that are left to one."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.images.dimensions import declared

SIDES = st.integers(1, 2**16 - 1)
WIDTH, HEIGHT, SHORT, LONG = 256, 257, 3, 4


def tiff(entries: list[tuple[int, int, int]], endian: str) -> bytes:
    """A header with these entries, each a tag, a type and a value."""
    start = (b"II*\0" if endian == "<" else b"MM\0*") + struct.pack(f"{endian}LH", 8, len(entries))
    return start + b"".join(
        struct.pack(f"{endian}HHLH2x" if kind == SHORT else f"{endian}HHLL", tag, kind, 1, value)
        for tag, kind, value in entries
    )


@given(
    st.permutations([(WIDTH, 640), (HEIGHT, 480), (258, 8), (259, 1)]),
    st.sampled_from([SHORT, LONG]),
    st.sampled_from("<>"),
)
def test_a_tiff_says_its_size(tags: list[tuple[int, int]], kind: int, endian: str) -> None:
    assert declared("TIFF", tiff([(tag, kind, value) for tag, value in tags], endian)) == (640, 480)


@given(st.sampled_from([WIDTH, HEIGHT]), SIDES, st.sampled_from("<>"), st.integers(0, 2))
def test_a_size_that_is_named_twice_is_left_to_the_decoder(
    tag: int, value: int, endian: str, place: int
) -> None:
    """Decoders differ in which of the two they take: a small number must not hide a large picture."""
    entries = [(WIDTH, SHORT, 640), (HEIGHT, SHORT, 480)]
    entries.insert(place, (tag, SHORT, value))
    assert declared("TIFF", tiff(entries, endian)) is None


@pytest.mark.parametrize("missing", [WIDTH, HEIGHT])
def test_half_a_size_is_none(missing: int) -> None:
    entries = [(tag, SHORT, 9) for tag in (WIDTH, HEIGHT) if tag != missing]
    assert declared("TIFF", tiff(entries, "<")) is None


@pytest.mark.parametrize("kind", [1, 2, 5, 16])
def test_a_size_of_another_type_is_left_to_the_decoder(kind: int) -> None:
    assert declared("TIFF", tiff([(WIDTH, kind, 640), (HEIGHT, SHORT, 480)], "<")) is None
