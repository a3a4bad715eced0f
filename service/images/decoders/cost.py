"""Upper bounds of a picture's cost: bytes of memory and seconds of CPU.

They follow from what the reader knows after the header, and both are enforced: a decoder's address space ends at the
bytes, and it is killed after the seconds. `python -m benchmarks.pictures` measures the largest pictures of every
kind.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from service.images.decode import OpenedImage

#: Bytes of a pixel in Pillow's memory, by mode; 4 for all other modes.
_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}
_RGB = 4
#: Bytes a pixel of libwebp's canvases, Pillow's copies (16.7 were measured) and a rotation.
_WEBP = 18
#: Bytes a pixel of libtiff's strip, which may be the whole image with 16 bits a sample.
_STRIP = 8
#: Bytes of a JPEG coefficient that is kept until the last scan.
_COEFFICIENT = 2
#: Bytes that do not grow with the picture, and of a resize's first pass.
_FIXED = 16 << 20
#: Seconds of CPU for any picture, and for each pixel. This is some four times the slowest legitimate picture measured
#: (a 50-megapixel PNG with alpha: 2 s), with room for slower processors.
_SECONDS, _SECONDS_A_PIXEL = 3.0, 0.15e-6


@dataclass(frozen=True)
class Cost:
    memory: int
    """Bytes."""
    seconds: float
    """Seconds of CPU."""


def cost(opened: OpenedImage) -> Cost:
    """Returns the cost bound of a picture that is opened but not decoded."""
    return Cost(
        _FIXED + 2 * len(opened.data) + int(_bytes(opened)), _SECONDS + _SECONDS_A_PIXEL * opened.pixels
    )


def largest(max_pixels: int, max_bytes: int) -> Cost:
    """Returns an upper bound of the cost of every picture within these limits."""
    return Cost(_FIXED + 2 * max_bytes + _WEBP * max_pixels, _SECONDS + _SECONDS_A_PIXEL * max_pixels)


#: Cost that every decoder is allowed at once, so that a small picture need not ask for memory.
SMALL = Cost(48 << 20, _SECONDS)


def _bytes(opened: OpenedImage) -> float:
    """Bytes for the pixels in the most expensive of three steps: decode, rotate, convert."""
    image = opened.image
    if image is None:
        return _WEBP * opened.pixels
    pixel = _PIXEL.get(image.mode, _RGB)
    size = image.width * image.height
    loaded = pixel * size + _beside(image, opened)
    turned = 2 * pixel * size if opened.turned else 0
    converted = (pixel + _RGB) * size if image.mode not in ("RGB", "L") else 0
    return max(loaded, turned, converted)


def _beside(image: ImageFile, opened: OpenedImage) -> float:
    """Bytes that a decoder needs in addition to the image that it writes."""
    if isinstance(image, TiffImageFile):
        return _STRIP * opened.pixels
    if isinstance(image, JpegImageFile) and _keeps_coefficients(image, opened.data):
        across, down = (max((layer[k] for layer in image.layer), default=1) or 1 for k in (2, 1))
        samples = sum(layer[1] * layer[2] for layer in image.layer) / (across * down)
        return _COEFFICIENT * samples * opened.pixels
    return 0.0


def _keeps_coefficients(image: JpegImageFile, data: bytes) -> bool:
    """Returns True if libjpeg keeps all coefficients: a progressive file, or a first scan without all components."""
    if image.info.get("progressive"):
        return True
    scan = data.find(b"\xff\xda")
    return data[scan + 4 : scan + 5] != bytes([image.layers])
