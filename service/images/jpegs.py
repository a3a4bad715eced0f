"""Recognises the plain JPEGs that a GPU's decoder is trusted with, by their markers alone (ITU-T T.81, annex B).

Plain is: baseline or progressive, 8 bits, grey or YCbCr in a common sampling, upright. The CPU decodes everything
else: CMYK, RGB by Adobe's marker, arithmetic coding, lossless, EXIF that rotates, and whatever cannot be parsed.
"""

from __future__ import annotations

import struct

from service.images.dimensions import FRAMES

#: Start of frame: baseline, extended (its 8 bits are checked) and progressive, each Huffman coded.
_PLAIN_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_SCAN, _APP1, _APP14 = 0xDA, 0xE1, 0xEE
#: Sampling factors of luma while chroma has 1 x 1: 4:4:4, 4:2:2, 4:2:0.
_SAMPLINGS = frozenset({0x11, 0x21, 0x22})
_ORIENTATION = 0x0112
_MAX_SEGMENTS = 64


def plain(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a plain JPEG; None for every other file."""
    at = 2
    size: tuple[int, int] | None = None
    if data[:3] != b"\xff\xd8\xff":
        return None
    for _ in range(_MAX_SEGMENTS):
        if at + 4 > len(data) or data[at] != 0xFF:
            return None
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if marker == _SCAN:
            return size
        if marker in FRAMES:
            size = _frame(body) if marker in _PLAIN_FRAMES and size is None else None
            if size is None:
                return None
        # Adobe's marker tells whether three components are YCbCr (1), RGB (0) or something else.
        if marker == _APP14 and body.startswith(b"Adobe") and body[11:12] != b"\x01":
            return None
        if marker == _APP1 and body.startswith(b"Exif\0\0") and not _upright(body[6:]):
            return None
        at += 2 + max(2, length)
    return None


def _frame(body: bytes) -> tuple[int, int] | None:
    if len(body) < 6 or body[0] != 8:
        return None
    height, width, components = *struct.unpack(">HH", body[1:5]), body[5]
    factors = [body[7 + 3 * number] for number in range(components) if 7 + 3 * number < len(body)]
    grey = components == 1
    colour = (
        components == 3 and len(factors) == 3 and factors[0] in _SAMPLINGS and factors[1:] == [0x11, 0x11]
    )
    return (height, width) if height and width and (grey or colour) else None


def _upright(tiff: bytes) -> bool:
    """Returns True if the EXIF block asks for no rotation; False also where it cannot be parsed."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 10:
        return False
    first: int = struct.unpack(f"{order}I", tiff[4:8])[0]
    if first + 2 > len(tiff):
        return False
    count: int = struct.unpack(f"{order}H", tiff[first : first + 2])[0]
    entries = tiff[first + 2 : first + 2 + 12 * count]
    if len(entries) < 12 * count:
        return False
    for at in range(0, len(entries), 12):
        tag, kind = struct.unpack(f"{order}HH", entries[at : at + 4])
        if tag == _ORIENTATION:
            return bool(kind == 3 and struct.unpack(f"{order}H", entries[at + 8 : at + 10])[0] == 1)
    return True
