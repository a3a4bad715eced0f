"""What a picture costs to prepare at most: bytes of memory, and seconds of CPU.

Told from what its reader knows after the header. Both are held to: a decoder's address space ends at the bytes, and
it is killed after the seconds. `python -m benchmarks.pictures` measures the largest pictures of every kind.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from service.images.decode import Opened

#: Bytes of a pixel in Pillow's memory, by mode; four for all others.
_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}
_RGB = 4
#: libwebp's canvases and Pillow's copies of them (16.7 bytes a pixel were measured), and a picture that is turned.
_WEBP = 18
#: libtiff's strip, which may be the whole image with 16 bits a sample.
_STRIP = 8
#: A coefficient of a JPEG that is kept until the last scan.
_COEFFICIENT = 2
#: Bytes for what does not grow with the picture, and for a resize's first pass.
_FIXED = 16 << 20
#: Seconds of CPU that any picture may take, and that each pixel adds: some four times what the slowest honest picture
#: takes here (a 50-megapixel PNG with alpha: 2 s), for slower processors.
_SECONDS, _SECONDS_A_PIXEL = 3.0, 0.15e-6


@dataclass(frozen=True)
class Cost:
    memory: int
    """Bytes."""
    seconds: float
    """Of CPU."""


def cost(opened: Opened) -> Cost:
    """Of a picture that was not decoded yet."""
    return Cost(
        _FIXED + 2 * len(opened.data) + int(_bytes(opened)), _SECONDS + _SECONDS_A_PIXEL * opened.pixels
    )


def largest(max_pixels: int, max_bytes: int) -> Cost:
    """An upper bound of every picture that these limits let through."""
    return Cost(_FIXED + 2 * max_bytes + _WEBP * max_pixels, _SECONDS + _SECONDS_A_PIXEL * max_pixels)


#: Before anything is known of a picture: what every decoder may take, so that small pictures need not ask.
SMALL = Cost(48 << 20, _SECONDS)


def _bytes(opened: Opened) -> float:
    """For the pixels, at the worst of the three steps: decoded, turned, converted."""
    image = opened.image
    if image is None:
        return _WEBP * opened.pixels
    pixel = _PIXEL.get(image.mode, _RGB)
    size = image.width * image.height
    loaded = pixel * size + _beside(image, opened)
    turned = 2 * pixel * size if opened.turned else 0
    converted = (pixel + _RGB) * size if image.mode not in ("RGB", "L") else 0
    return max(loaded, turned, converted)


def _beside(image: ImageFile, opened: Opened) -> float:
    """What a decoder needs beside the image that it writes."""
    if isinstance(image, TiffImageFile):
        return _STRIP * opened.pixels
    if isinstance(image, JpegImageFile) and _keeps_coefficients(image, opened.data):
        across, down = (max((layer[k] for layer in image.layer), default=1) or 1 for k in (2, 1))
        samples = sum(layer[1] * layer[2] for layer in image.layer) / (across * down)
        return _COEFFICIENT * samples * opened.pixels
    return 0.0


def _keeps_coefficients(image: JpegImageFile, data: bytes) -> bool:
    """libjpeg keeps them where there are several scans: progressive, or a first scan without all components."""
    if image.info.get("progressive"):
        return True
    scan = data.find(b"\xff\xda")
    return data[scan + 4 : scan + 5] != bytes([image.layers])
