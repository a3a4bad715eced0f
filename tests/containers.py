"""Containers of image files, written piece by piece: what a file may be, and not what an encoder makes of it."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

from PIL import Image

from tests.pictures import encode, png_chunk

SOI, EOI, SOS, APP1, COM = 0xD8, 0xD9, 0xDA, 0xE1, 0xFE


def segment(marker: int, content: bytes) -> bytes:
    """A segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def jpeg(size: tuple[int, int], **options: object) -> bytes:
    return encode(Image.new("RGB", size, (10, 200, 30)), "JPEG", **options)


def jpeg_with(data: bytes, *, before: bytes = b"", scans: bytes | None = None, behind: bytes = b"") -> bytes:
    """A JPEG with bytes behind its first marker, other scans than its own, and bytes behind its end."""
    body = data[2:] if scans is None else data[2 : data.index(b"\xff\xda")] + scans + b"\xff\xd9"
    return data[:2] + before + body + behind


def empty_scan(component: int) -> bytes:
    """A baseline scan of one component without data: decoders fill it with what comes last."""
    tables = 0x00 if component == 1 else 0x11
    return segment(SOS, bytes([1, component, tables, 0, 63, 0]))


def png(size: tuple[int, int], *, before: bytes = b"", behind: bytes = b"") -> bytes:
    """A PNG with chunks between its header and its pixels, and between them and its end."""
    data = encode(Image.new("RGB", size, (10, 200, 30)), "PNG")
    return data[:33] + before + data[33:-12] + behind + data[-12:]


def profile(megabytes: float = 1.0) -> bytes:
    return png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(int(megabytes * 1_000_000)), 9))


def gif(size: tuple[int, int], before: bytes = b"") -> bytes:
    """A GIF with blocks before its first image."""
    data = encode(Image.new("P", size), "GIF")
    at = 13 + (3 << ((data[10] & 7) + 1) if data[10] & 0x80 else 0)
    return data[:at] + before + data[at:]


def comment(blocks: int, length: int) -> bytes:
    """A comment of a GIF."""
    return b"!\xfe" + (bytes([length]) + b"c" * length) * blocks + b"\0"


def tiff(
    size: tuple[int, int],
    offsets: Sequence[int],
    data: bytes,
    *,
    bits: int = 8,
    rows: int | None = None,
    tile: tuple[int, int] | None = None,
    rows_type: int = 4,
    big: bool = False,
    endian: str = "<",
    compression: int = 1,
) -> bytes:
    """A grey TIFF whose strips or tiles may lie anywhere, any number of times. ``data`` begins at byte 8 (16)."""
    width, height = size
    entry, number, start = ("HHQ", "Q", 16) if big else ("HHL", "L", 8)
    tags = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, bits),
        (259, 3, compression),
        (262, 3, 1),
        (277, 3, 1),
    ]
    if tile:
        tags += [(322, 4, tile[0]), (323, 4, tile[1])]
    elif rows is not None:
        tags += [(278, rows_type, rows)]
    where, sizes = (324, 325) if tile else (273, 279)
    directory = start + len(data)
    step = struct.calcsize("=" + entry + number)
    array = (
        directory
        + struct.calcsize("=" + ("Q" if big else "H"))
        + step * (len(tags) + 2)
        + struct.calcsize("=" + number)
    )
    out = io.BytesIO()
    magic = (b"II" if endian == "<" else b"MM") + struct.pack(endian + "H", 43 if big else 42)
    out.write(
        magic
        + (struct.pack(endian + "HHQ", 8, 0, directory) if big else struct.pack(endian + "L", directory))
    )
    out.write(data)
    out.write(struct.pack(endian + ("Q" if big else "H"), len(tags) + 2))
    inline = struct.calcsize("=" + number)
    rest = [(where, 4, len(offsets)), (sizes, 4, len(offsets))]
    for tag, kind, value in sorted([*tags, *rest]):
        if tag in (where, sizes):
            fits = 4 * value <= inline
            content = (
                struct.pack(f"{endian}{value}L", *offsets) if fits else struct.pack(endian + number, array)
            )
            count = value
        else:
            content = struct.pack(endian + {3: "H", 4: "L", 11: "f", 9: "l"}[kind], value)
            count = 1
        out.write(struct.pack(endian + entry, tag, kind, count) + content.ljust(inline, b"\0"))
    out.write(bytes(inline) + struct.pack(f"{endian}{len(offsets)}L", *offsets))
    return out.getvalue()
