"""Image files by a grammar of their containers: any number of any part, where an encoder writes a few in order.

Every file of a seed is the same each time, has at most ten megabytes and begins like one of the six formats. Some are
whole and harmless, some are damaged, and some cost as much as their container lets them.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from functools import cache

from PIL import Image

from tests import containers
from tests.containers import segment
from tests.pictures import encode, png_chunk, run_length_bmp, webp_bomb

#: Bytes of a file at most.
LARGEST = 10_000_000
#: Sides: from an icon to just below the limit of pixels.
_SIDES = ((40, 30), (300, 200), (1200, 900), (4000, 3000), (7071, 7071), (65_500, 763), (763, 65_500))


def file(seed: int) -> tuple[str, bytes]:
    """A name that says what it is, and the file."""
    rng = random.Random(seed)
    name = rng.choice(sorted(_FORMATS))
    data = _FORMATS[name](rng)
    if rng.random() < 0.1:
        data = data[: rng.randrange(20, len(data))]
    return f"{seed} {name}", data[:LARGEST]


def _count(rng: random.Random) -> int:
    """Most often few, sometimes as many as fit."""
    return int(10 ** rng.choice([rng.uniform(0, 1.5), rng.uniform(0, 6.5)]))


def _run(rng: random.Random, part: bytes) -> bytes:
    """One part as often as the grammar likes, and as there is room for."""
    return part * min(_count(rng), LARGEST // 2 // max(1, len(part)))


@cache
def _jpeg(size: tuple[int, int], mode: str, progressive: bool, subsampling: int) -> bytes:
    image = Image.new(mode, size)
    options = {"subsampling": subsampling} if mode == "RGB" else {}
    return encode(image, "JPEG", quality=50, progressive=progressive, **options)


def _jpeg_file(rng: random.Random) -> bytes:
    mode = rng.choice(["RGB", "RGB", "L", "CMYK"])
    data = _jpeg(rng.choice(_SIDES), mode, rng.random() < 0.5, rng.choice([0, 2]))
    frame = next(at for at in (data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) if at > 0)
    if rng.random() < 0.1:  # another kind of frame: lossless, hierarchical, arithmetic, twelve bits
        data = data[: frame + 1] + bytes([rng.choice([0xC1, 0xC3, 0xC5, 0xC9, 0xCA])]) + data[frame + 2 :]
    before = b"".join(_run(rng, _segment(rng)) for _ in range(rng.randrange(4)))
    first = data.index(b"\xff\xda")
    scan = data[first : data.find(b"\xff", first + 14) if rng.random() < 0.5 else first + 14]
    scans = data[first:-2]
    for _ in range(rng.randrange(3)):
        scans += _run(rng, rng.choice([scan, _scan(rng), _segment(rng), b"\xff\xd0", b"\0" * 20]))
    return (
        data[:2] + before + data[2:first] + scans + b"\xff\xd9" + rng.choice([b"", scan * 500, b"x" * 1000])
    )


def _segment(rng: random.Random) -> bytes:
    marker = rng.choice([0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE, 0xDB, 0xDD])
    begin = rng.choice(
        [b"", b"Exif\0\0", b"ICC_PROFILE\0\1\1", b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 50, b"MPF\0"]
    )
    length = rng.choice([0, 4, 60, 3000, 60_000])
    return rng.choice([segment(marker, (begin + b"a" * length)[:65_000]), b"\xff", b"a", b"\xff\xd8"])


def _scan(rng: random.Random) -> bytes:
    """Of one component, any band and any step of approximation."""
    low = rng.choice([0, 1, 1, 6])
    high = 0 if low == 0 else rng.choice([5, 63])
    step = rng.choice([0x00, 0x01, 0x10, 0x21, 0xD0])
    component = rng.choice([1, 2, 3])
    return segment(0xDA, bytes([1, component, rng.choice([0x00, 0x11]), low, high, step]))


def _png_file(rng: random.Random) -> bytes:
    width, height = rng.choice(_SIDES)
    kind, channels = rng.choice([(0, 1), (2, 3), (3, 1), (4, 2), (6, 4)])
    bits = rng.choice([1, 2, 4, 8] if kind == 3 else [8, 16] if kind else [1, 2, 4, 8, 16])
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, rng.randrange(2))
    rows = zlib.compressobj(1)
    row = b"\0" + bytes(-(-width * channels * bits // 8))
    lines = min(height, 1 + LARGEST * 20 // len(row))
    pixels = b"".join(rows.compress(row * min(64, lines - at)) for at in range(0, lines, 64)) + rows.flush()
    parts = [b"\x89PNG\r\n\x1a\n", png_chunk(b"IHDR", header)]
    parts += [_run(rng, _chunk(rng)) for _ in range(rng.randrange(3))]
    parts += [png_chunk(b"PLTE", bytes(range(256)) * 3)] if kind == 3 else []
    parts += [png_chunk(b"IDAT", pixels[: LARGEST // 3])]
    parts += [_run(rng, _chunk(rng)) for _ in range(rng.randrange(3))]
    return b"".join(parts)[: LARGEST - 12] + png_chunk(b"IEND", b"")


def _chunk(rng: random.Random) -> bytes:
    packed = zlib.compress(bytes(rng.choice([0, 1000, 1_000_000])), 9)
    exif = b"II*\0\x08\0\0\0\1\0\x12\x01\3\0\1\0\0\0\6\0\0\0\0\0\0\0"
    return rng.choice(
        [
            png_chunk(b"iCCP", b"a\0\0" + packed),
            png_chunk(b"zTXt", b"k\0\0" + packed),
            png_chunk(b"iTXt", b"k\0\1\0\0\0" + packed),
            png_chunk(b"tEXt", b"k\0" + b"v" * rng.choice([0, 100, 60_000])),
            png_chunk(b"eXIf", exif),
            png_chunk(b"abCd", b""),
            png_chunk(b"IDAT", b""),
            png_chunk(b"fcTL", bytes(26)),
        ]
    )


def _gif_file(rng: random.Random) -> bytes:
    blocks = (
        containers.comment(1, 1),
        containers.comment(100, 255),
        b"\x01",
        b"!\xff\x01a\0",
        b"!\xf9\4\x08\0\0\0\0",
    )
    before = b"".join(_run(rng, rng.choice(blocks)) for _ in range(rng.randrange(3)))
    data = bytearray(containers.gif(rng.choice(_SIDES[:3]), before[: LARGEST - 100_000]))
    if rng.random() < 0.3:  # a larger canvas than its image
        data[6:10] = struct.pack("<HH", *rng.choice(_SIDES))
    return bytes(data[:-1]) + _run(rng, bytes(data[-20:])) + b";"


def _webp_file(rng: random.Random) -> bytes:
    if rng.random() < 0.4:
        return webp_bomb(*rng.choice([side for side in _SIDES if max(side) <= 16_383]))
    size = rng.choice(_SIDES[:4])
    data = encode(Image.new(rng.choice(["RGB", "RGBA"]), size), "WEBP", lossless=rng.random() < 0.5, method=0)
    chunk = rng.choice([b"EXIF", b"XMP ", b"ICCP", b"ANMF", b"abcd"]) + struct.pack("<I", 4) + b"aaaa"
    data += _run(rng, chunk)
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


def _bmp_file(rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        size = rng.choice([(1400, 1400), (20, 90_000), (60_000, 33), (40, 30)])
        body = _run(rng, rng.choice([b"\0\0", b"\1\1", b"\0\2\1\1", b"\xff\7", b"\0\xff" + bytes(256)]))
        return run_length_bmp(*size, body + b"\0\1")
    return encode(Image.new(rng.choice(["1", "P", "RGB"]), rng.choice(_SIDES[:3])), "BMP")


def _tiff_file(rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        compression = rng.choice(["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4"])
        mode = "1" if compression == "group4" else rng.choice(["RGB", "L"])
        return encode(Image.new(mode, rng.choice(_SIDES[:5])), "TIFF", compression=compression)
    width, height = rng.choice(_SIDES)
    bits = rng.choice([1, 8, 16])
    side = rng.choice([1, 16, 500, 3536, height])
    layout = {"tile": (max(16, side), max(16, side))} if rng.random() < 0.3 else {"rows": side}
    parts = -(-height // side)
    number = min(rng.choice([1, parts, parts + 1, _count(rng)]), 1_500_000)
    offsets = [8 + rng.randrange(2) for _ in range(min(number, 2))] * (number // 2 or 1)
    data = b"\xaa" * min(3_500_000, -(-width * bits // 8) * side + 100)
    return containers.tiff(
        (width, height),
        offsets,
        data,
        bits=bits,
        rows_type=rng.choice([4, 4, 4, 9, 11]),
        compression=rng.choice([1, 1, 1, 5, 8, 32_773]),
        **layout,
    )


_FORMATS: dict[str, Callable[[random.Random], bytes]] = {
    "JPEG": _jpeg_file,
    "PNG": _png_file,
    "GIF": _gif_file,
    "WebP": _webp_file,
    "BMP": _bmp_file,
    "TIFF": _tiff_file,
}
