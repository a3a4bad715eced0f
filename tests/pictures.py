"""Encoded images for the tests of `service.images.decode` and `service.preprocess`."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

MODES = [
    "1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F",
    "I;16", "I;16L", "I;16B",
]  # fmt: skip

#: One lossless or nearly lossless writer for each mode that a file can bring.
WRITERS = {
    "1": "PNG", "L": "PNG", "LA": "PNG", "P": "PNG", "PA": "TIFF", "RGB": "PNG", "RGBA": "PNG",
    "RGBX": "TIFF", "CMYK": "JPEG", "YCbCr": "TIFF", "LAB": "TIFF", "I": "TIFF", "F": "TIFF", "I;16": "PNG",
    "I;16B": "TIFF",
}  # fmt: skip


def picture(mode: str = "RGB", size: tuple[int, int] = (37, 23), seed: int = 0) -> Image.Image:
    """Noise over a gradient, of any mode; ``size`` is (width, height) as Pillow has it."""
    rng = np.random.default_rng(seed)
    width, height = size
    slope = np.add.outer(np.linspace(0, 128, height), np.linspace(0, 100, width))[:, :, None]
    values = np.clip(slope + rng.integers(0, 60, (height, width, 3)), 0, 255).astype(np.uint8)
    image = Image.fromarray(values)
    if mode in ("I", "F", "I;16", "I;16L", "I;16B"):
        return Image.fromarray(values[:, :, 0].astype(np.int32) * 3).convert(mode)
    if mode in ("LA", "La", "RGBA", "RGBa", "PA"):
        image.putalpha(Image.fromarray(values[:, :, 1]))
    if mode in ("La", "PA"):
        image = image.convert("LA" if mode == "La" else "RGBA")
    return image.convert(mode)


def encode(image: Image.Image, name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def oriented(image: Image.Image, name: str, orientation: int, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, name, exif=exif, **options)


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises what its few bytes do not hold."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + header + data + png_chunk(b"IEND", b"")


def webp_bomb(width: int, height: int) -> bytes:
    """A WebP whose canvas Pillow would allocate while it opens the file."""
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\0" * 4 + struct.pack("<I", width - 1)[:3]
    canvas += struct.pack("<I", height - 1)[:3]
    frame = encode(picture(size=(8, 8)), "WEBP", lossless=True)[12:]
    return b"RIFF" + struct.pack("<I", 4 + len(canvas) + len(frame)) + b"WEBP" + canvas + frame


def gif_bomb(width: int, height: int) -> bytes:
    """A GIF of one pixel whose first frame claims, and clears, a larger area."""
    control = b"!\xf9\x04\x08\0\0\0\0"  # disposal: clear to the background
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\0"
    return (
        b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + control + frame + b";"
    )


def run_length_bmp(width: int, height: int, body: bytes) -> bytes:
    offset = 54 + 1024
    head = b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    return head + info + bytes(range(256)) * 4 + body
