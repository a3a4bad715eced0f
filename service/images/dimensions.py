"""Width and height from a file's first kilobytes, by plain arithmetic: no decoder is opened.

None is returned where the bytes do not suffice or the header is unusual: the decoder then decides. Tests compare
every result with Pillow's over the corpus of damaged files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

Size = tuple[int, int]

#: Start-of-frame markers, all thirteen kinds: C0 to CF without DHT (C4), the reserved JPG (C8) and DAC (CC).
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
#: Markers without a length: TEM, the restarts and start of image.
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
#: TIFF's tags of width and height, and its 16-bit and 32-bit types.
_WIDTH, _HEIGHT = 256, 257
_SHORT, _LONG = 3, 4


def declared(name: str, head: bytes) -> Size | None:
    """Returns (width, height) from the header of a file of format ``name``; None if ``head`` does not show it."""
    return _READ[name](head)


def webp_canvas(head: bytes) -> Size | None:
    """Returns (width, height) of a WebP's canvas (RFC 9649); None if ``head`` is too short or of an unknown kind."""
    kind, word = head[12:16], int.from_bytes(head[21:25], "little")
    if len(head) < 30:
        return None
    if kind == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if kind == b"VP8L":
        return (word & 0x3FFF) + 1, (word >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF
    return None


def _png(head: bytes) -> Size | None:
    if len(head) < 24 or head[8:16] != b"\0\0\0\x0dIHDR":
        return None
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def _gif(head: bytes) -> Size | None:
    if len(head) < 10:
        return None
    return int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")


def _bmp(head: bytes) -> Size | None:
    if len(head) < 26:
        return None
    if int.from_bytes(head[14:18], "little") == 12:
        return int.from_bytes(head[18:20], "little"), int.from_bytes(head[20:22], "little")
    width, height = (int.from_bytes(head[at : at + 4], "little", signed=True) for at in (18, 22))
    # a negative height means that the rows start at the top
    return (width, abs(height)) if width > 0 else None


def _jpeg(head: bytes) -> Size | None:
    at = 2
    while at + 9 <= len(head) and head[at] == 0xFF:
        marker = head[at + 1]
        if marker in FRAMES:
            return int.from_bytes(head[at + 7 : at + 9], "big"), int.from_bytes(head[at + 5 : at + 7], "big")
        if marker == 0xFF or marker in _ALONE:
            at += 1 if marker == 0xFF else 2
        else:
            at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    return None


def _tiff(head: bytes) -> Size | None:
    endian: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"
    if head[2:4] not in (b"*\0", b"\0*"):  # not the number 42 of TIFF 6.0: BigTIFF
        return None

    def number(at: int, size: int) -> int:
        return int.from_bytes(head[at : at + size], endian)

    directory = number(4, 4)
    count = number(directory, 2)
    if directory < 8 or directory + 2 + 12 * count > len(head):
        return None
    sides: dict[int, int] = {}
    for at in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind = number(at, 2), number(at + 2, 2)
        if tag in (_WIDTH, _HEIGHT):
            if tag in sides or kind not in (_SHORT, _LONG) or number(at + 4, 4) != 1:
                return None
            sides[tag] = number(at + 8, 2 if kind == _SHORT else 4)
    return (sides[_WIDTH], sides[_HEIGHT]) if len(sides) == 2 else None


_READ: dict[str, Callable[[bytes], Size | None]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "WEBP": webp_canvas,
    "GIF": _gif,
    "BMP": _bmp,
    "TIFF": _tiff,
}
