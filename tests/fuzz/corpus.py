"""Damaged image files, as many as are asked for: made from whole ones by mutation, the same for the same number.

`whole` are small files that lead into every corner of the six readers; `extreme` are files that are valid, or
nearly so, and want more than they look like. `damaged` mutates both.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache

from tests.pictures import (
    WRITERS,
    encode,
    gif_bomb,
    oriented,
    picture,
    png_bomb,
    png_chunk,
    run_length_bmp,
    webp_bomb,
)

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

#: What lengths, sizes, counts and offsets are set to.
_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
#: Mutations aim at the first bytes as often as anywhere: that is where headers are.
_FRONT = 120


@cache
def whole() -> dict[str, bytes]:
    """Valid files of every format, mode and coding, by a name for each."""
    rgb, grey = picture(), picture("L")
    files = {name.lower(): encode(rgb, name) for name in FORMATS}
    files |= {f"{mode} {name}": oriented(picture(mode), name, 6) for mode, name in WRITERS.items()}
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        files[compression] = encode(rgb, "TIFF", compression=compression)
    files["group4"] = encode(picture("1"), "TIFF", compression="group4")
    files["progressive"] = encode(rgb, "JPEG", progressive=True)
    files["apng"] = encode(rgb, "PNG", save_all=True, append_images=[picture(seed=3)])
    files["agif"] = encode(grey.quantize(9), "GIF", save_all=True, append_images=[picture("P", seed=3)])
    files["awebp"] = encode(rgb, "WEBP", save_all=True, append_images=[picture(seed=3)])
    files["tiff pages"] = encode(rgb, "TIFF", save_all=True, append_images=[picture(seed=3)])
    files["rle"] = run_length_bmp(20, 10, b"\x14\x05\0\0" * 10)
    files["lossless webp"] = encode(picture("RGBA"), "WEBP", lossless=True)
    files["transparent palette"] = encode(rgb.quantize(7), "PNG", transparency=b"\0\x80\xff")
    files["interlaced"] = interlaced_png(37, 23)
    files["icc"] = encode(rgb, "JPEG", icc_profile=b"profile" * 50)
    files["palette bmp"] = encode(picture("P"), "BMP")
    files["1 bit bmp"] = encode(picture("1"), "BMP")
    for size in ((1, 1), (1, 300), (300, 1)):
        files |= {f"{size} {name}": encode(picture(size=size), name) for name in FORMATS}
    return files


@cache
def extreme() -> dict[str, bytes]:
    """Bombs, and what is large in an unusual way."""
    rgb = picture()
    frames = [picture(size=(16, 16), seed=seed) for seed in range(300)]
    files = {
        "png bomb": png_bomb(50_000, 50_000),
        "png of the largest numbers": png_bomb(2**31 - 1, 2**31 - 1),
        "png empty inside": png_bomb(7_000, 7_000),
        "webp canvas": webp_bomb(16_000, 16_000),
        "gif frame": gif_bomb(60_000, 60_000),
        "rle bomb": run_length_bmp(60_000, 700, b"\0\1"),
        "interlaced 7000 x 7000": interlaced_png(7_000, 7_000),
        "text bomb": png_bomb(10, 10)[:33] + png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**6))) * 200,
        "huge icc jpeg": encode(rgb, "JPEG", icc_profile=bytes(3_000_000)),
        "huge icc png": encode(rgb, "PNG", icc_profile=bytes(3_000_000)),
        "huge icc webp": encode(rgb, "WEBP", icc_profile=bytes(3_000_000)),
        "huge exif jpeg": encode(rgb, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0" + b"\xff" * 65_000),
        "huge exif png": encode(rgb, "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0" + b"\xff" * 2_000_000),
        "1 x 20000": encode(picture(size=(1, 20_000)), "PNG"),
        "20000 x 1": encode(picture(size=(20_000, 1)), "JPEG"),
        "side too long": png_bomb(65_536, 1),
    }
    for name in ("GIF", "TIFF", "WEBP", "PNG"):
        files[f"300 frames {name}"] = encode(frames[0], name, save_all=True, append_images=frames[1:])
    scans = encode(picture(size=(64, 64)), "JPEG", progressive=True)
    files["endless scans"] = scans[:-2] + scans[scans.rindex(b"\xff\xda") : -2] * 500 + b"\xff\xd9"
    for number, content in enumerate(
        (b"%PDF-1.7", b"<svg/>", b"8BPS\0\1", b"RIFF\0\0\0\0WAVE", b"BMW", b"\0")
    ):
        files[f"other {number}"] = content + bytes(40)
    files |= {f"other {name}": encode(picture(size=(64, 64)), name) for name in ("PPM", "ICO", "PCX", "TGA")}
    return files


def damaged(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """``count`` files, each with a name that says how it came to be. Extreme ones come as they are, first."""
    sources = whole()
    yield from list(extreme().items())[:count]
    names = sorted(sources)
    bombs = [name for name, data in extreme().items() if len(data) < 100_000]
    for number in range(count - len(extreme())):
        rng = random.Random(f"{seed} {number}")
        name = rng.choice(bombs) if number % 20 == 19 else names[number % len(names)]
        data = bytearray(sources.get(name) or extreme()[name])
        done = []
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            mutation = rng.choice(_MUTATIONS)
            mutation(data, rng)
            done.append(mutation.__name__.strip("_"))
        yield f"{number} {name}: {', '.join(done)}", bytes(data)


def _at(data: bytearray, rng: random.Random) -> int:
    return rng.randrange(max(1, rng.choice((len(data), min(len(data), _FRONT)))))


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[_at(data, rng) :]


def _flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 4, 32))):
        if data:
            data[_at(data, rng)] ^= 1 << rng.randrange(8)


def _number(data: bytearray, rng: random.Random) -> None:
    """Wrong lengths, sizes, counts and offsets."""
    size, number = rng.choice(((1, "B"), (2, "H"), (4, "I")))
    at = _at(data, rng)
    value = rng.choice(_NUMBERS) & (256**size - 1)
    data[at : at + size] = struct.pack(rng.choice("<>") + number, value)


def _remove(data: bytearray, rng: random.Random) -> None:
    at = _at(data, rng)
    del data[at : at + rng.choice((1, 2, 4, 16, 64))]


def _repeat(data: bytearray, rng: random.Random) -> None:
    at = _at(data, rng)
    data[at:at] = data[at : at + rng.choice((1, 4, 16, 256))] * rng.choice((1, 1, 10, 100))


def _insert(data: bytearray, rng: random.Random) -> None:
    at = _at(data, rng)
    data[at:at] = rng.choice((bytes(16), b"\xff" * 16, rng.randbytes(16)))


def _blank(data: bytearray, rng: random.Random) -> None:
    at = _at(data, rng)
    length = min(rng.choice((4, 16, 64, 1024)), len(data) - at)
    data[at : at + length] = bytes(length)


def _splice(data: bytearray, rng: random.Random) -> None:
    """The rest of another file, at the same place."""
    other = whole()[rng.choice(sorted(whole()))]
    at = _at(data, rng)
    data[at:] = other[at:]


def _disguise(data: bytearray, rng: random.Random) -> None:
    """The first bytes of another format."""
    other = encode(picture(), rng.choice(FORMATS))
    length = rng.choice((2, 4, 8, 12))
    data[:length] = other[:length]


_MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _cut, _flip, _number, _remove, _repeat, _insert, _blank, _splice, _disguise,
)  # fmt: skip


def interlaced_png(width: int, height: int) -> bytes:
    """A black grey-scale PNG in Adam7's seven passes, which Pillow can read and not write."""
    passes = (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    )
    rows = bytearray()
    for left, top, across, down in passes:
        columns, lines = -(-(width - left) // across), -(-(height - top) // down)
        rows += bytes((1 + columns) * lines)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1))
    content = png_chunk(b"IDAT", zlib.compress(bytes(rows)))
    return b"\x89PNG\r\n\x1a\n" + header + content + png_chunk(b"IEND", b"")
