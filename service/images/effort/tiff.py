"""TIFF 6.0 and BigTIFF: strips and tiles of the first directory against the size of the image.

Pillow decodes an uncompressed part each time that it is named, so offsets that name the same bytes repeatedly cost
the whole image each time. A part also costs some twenty microseconds of Python.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from service.errors import InvalidImage

#: Most strips or tiles: strips of one row of the highest image.
MAX_PARTS = 65_535

_WIDTH, _HEIGHT, _ROWS, _PLANES, _SAMPLES, _COMPRESSION = 256, 257, 278, 284, 277, 259
_STRIPS, _TILES, _TILE_WIDTH, _TILE_HEIGHT = 273, 324, 322, 323
_JUDGED = frozenset({_WIDTH, _HEIGHT, _ROWS, _PLANES, _SAMPLES, _COMPRESSION, _TILE_WIDTH, _TILE_HEIGHT})
#: TIFF's integer types as struct formats, and all types that Pillow reads: it skips entries of any other.
_INTEGERS = {1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 13: "L", 16: "Q"}
_KNOWN = frozenset({*range(1, 14), 16})
_SEPARATE, _UNCOMPRESSED = 2, 1


def judge(data: bytes) -> None:
    """Raises `InvalidImage`."""
    parts, numbers = 0, dict[int, int | None]()
    for tag, kind, count, inline in _entries(data):
        if kind not in _KNOWN or not count:
            continue
        if tag in (_STRIPS, _TILES):
            parts = max(parts, count)
        elif tag in _JUDGED and tag not in numbers:  # the first one counts
            numbers[tag] = _number(data, kind, count, inline)
    expected = _expected(numbers)
    if parts > 1 and expected is None:
        raise InvalidImage("the TIFF gives the size of its strips or tiles in a type other than an integer")
    if parts > max(expected or 0, MAX_PARTS):
        raise InvalidImage(f"the TIFF names more than {MAX_PARTS} strips or tiles, and its image has fewer")
    if numbers.get(_COMPRESSION, _UNCOMPRESSED) != _UNCOMPRESSED or expected is None or expected <= 1:
        # libtiff goes by the image's own parts; Pillow reads only one part that is as large as the image
        return
    if parts > min(expected, MAX_PARTS):
        raise InvalidImage(f"the TIFF names {parts} strips or tiles where its image has {expected}")


def _number(data: bytes, kind: int, count: int, inline: bytes) -> int | None:
    if count != 1 or kind not in _INTEGERS:
        return None
    return int(struct.unpack_from(_endian(data) + _INTEGERS[kind], inline)[0])


def _expected(numbers: dict[int, int | None]) -> int | None:
    """Returns the number of strips or tiles that the image has; None where a tag is no integer."""
    if None in numbers.values():
        return None
    known = {tag: max(1, value or 0) for tag, value in numbers.items()}
    width, height = known.get(_WIDTH, 1), known.get(_HEIGHT, 1)
    planes = known.get(_SAMPLES, 1) if known.get(_PLANES) == _SEPARATE else 1
    across = -(-width // known[_TILE_WIDTH]) if _TILE_WIDTH in known else 1
    rows = known.get(_TILE_HEIGHT, height) if _TILE_WIDTH in known else known.get(_ROWS, height)
    return planes * across * -(-height // rows)


def _endian(data: bytes) -> str:
    return "<" if data[:2] == b"II" else ">"


def _entries(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yields (tag, type, count, eight bytes of value or offset) of the first directory, up to the end of the file."""
    endian = _endian(data)
    big = data[2:3] == b"+"  # Pillow reads a BigTIFF of big-endian order as a TIFF
    first, number, entry, value = (
        (8, "Q", "HHQ", 12) if big else (4, "L", "HHL", 8)
    )  # places and struct formats
    try:
        (at,) = struct.unpack_from(endian + number, data, first)
        (count,) = struct.unpack_from(endian + ("Q" if big else "H"), data, at)
        at += 8 if big else 2
        size = struct.calcsize(endian + number)
        for place in range(at, at + count * (value + size), value + size):
            tag, kind, many = struct.unpack_from(endian + entry, data, place)
            yield tag, kind, many, data[place + value : place + value + size].ljust(8, b"\0")
    except (struct.error, OverflowError):
        return  # the file ends early: the reader finds that out as well
