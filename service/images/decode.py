"""Bytes → an upright RGB image, and no exception but our own on the way.

    sniff        which of the six accepted formats the first bytes announce; nothing else is ever decoded
    open         that format's reader of Pillow's alone; it reads headers only
    judge        the parts of the file against what encoders write (service.images.effort), and the pixels that the
                 header declares against the limit, before any is decoded
    load         the pixels; of several frames the first
    orient       by EXIF (or XMP), as ``ImageOps.exif_transpose`` does
    to_rgb       every colour mode, as ``Image.convert("RGB")`` does

Pillow only. Safe in any number of threads, as long as they agree about ``max_pixels``.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from service.errors import EmptyBody, ImageTooLarge, InvalidImage, UnsupportedMediaType
from service.images import effort
from service.images.dimensions import declared
from service.images.effort.jpeg import kind as unread_jpeg

#: The accepted formats by Pillow's names, each with the one class that may read it. The classes are
#: called directly: ``Image.open`` would consult a registry, load every plugin it lacks, and hand a
#: JPEG with a multi-picture header to a seventh reader (MPO).
_READERS: dict[str, type[ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
}

ACCEPTED = "JPEG, PNG, WebP, GIF, BMP and TIFF"

#: The longest side that JPEG can hold. The weights of a resize grow with the side and not with the area,
#: so 50,000,000 x 1 pixels would pass the limit of pixels and still cost gigabytes.
MAX_SIDE = 65_535

#: Where ``Image.info`` keeps the part of a scaled JPEG that the image really covers: left, top, right, bottom in
#: pixels, with fractions. A row and a column reach beyond it where the scale does not divide the sides. Absent for all
#: others.
EXTENT = "imagenet-serve extent"

Box = tuple[float, float, float, float]

#: As many first bytes as `sniff` looks at.
HEAD_BYTES = 18

#: As many first bytes as `judge_header` wants. A JPEG's frame may come later, behind large metadata; then
#: the decoder finds out.
HEADER_BYTES = 4096

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II\0*", "TIFF"),  # swapped magic: Pillow goes by the first two bytes, and so do we
    (b"MM*\0", "TIFF"),
    (b"II+\0", "TIFF"),  # BigTIFF
    (b"MM\0+", "TIFF"),
)

#: Sizes of the header that follows a bitmap's file header: the only words that tell it from a text
#: which happens to begin with BM.
_DIB_HEADERS = (12, 40, 52, 56, 64, 108, 124)

#: What Pillow's readers throw at bytes that they did not expect. Its documentation promises OSError;
#: the readers are forty thousand lines of index and struct arithmetic over hostile input, and all of
#: these have been seen or can be read in them. The list is as broad as it is because one more class
#: of exception must be a damaged image (422), not a failed service (500). It stands around Pillow
#: alone: our own arithmetic runs outside of it and keeps its exceptions.
_DAMAGE: tuple[type[Exception], ...] = (
    OSError,  # the documented one; UnidentifiedImageError; the C decoders' error codes
    SyntaxError,  # "not a … file", broken chunks, impossible tags
    ValueError,  # UnicodeError, limits of text chunks, buffers of the wrong size
    LookupError,  # IndexError and KeyError: data that ends early, unknown modes
    ArithmeticError,  # OverflowError, ZeroDivisionError: sizes and fractions from the file
    EOFError,  # no first frame
    struct.error,  # a header that ends early
    zlib.error,  # compressed chunks
    TypeError,  # a tag of another type than the reader expects
    AttributeError,  # a part that was never read
    AssertionError,  # what the readers believe about themselves
    RuntimeError,  # RecursionError, NotImplementedError
    MemoryError,  # a size that no memory holds, taken from the file
    BufferError,
    Warning,  # where a test turns warnings into errors and the filter below lost a race
)

#: By format: how Pillow's messages begin when it knows a file for whole and its kind for none of its own.
_UNREAD = {
    "TIFF": [("unknown pixel mode", "a TIFF whose samples have no mode of Pillow's")],
    "BMP": [("Unsupported BMP", "a BMP of an unusual layout")],
}

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112
#: Where the point (x, y) of an image of width w and height h goes.
_TURNED_POINTS: dict[Image.Transpose, Callable[[float, float, int, int], tuple[float, float]]] = {
    Image.Transpose.FLIP_LEFT_RIGHT: lambda x, y, w, h: (w - x, y),
    Image.Transpose.ROTATE_180: lambda x, y, w, h: (w - x, h - y),
    Image.Transpose.FLIP_TOP_BOTTOM: lambda x, y, w, h: (x, h - y),
    Image.Transpose.TRANSPOSE: lambda x, y, w, h: (y, x),
    Image.Transpose.ROTATE_270: lambda x, y, w, h: (h - y, x),
    Image.Transpose.TRANSVERSE: lambda x, y, w, h: (h - y, w - x),
    Image.Transpose.ROTATE_90: lambda x, y, w, h: (y, w - x),
}

#: Chunks of a PNG that may hold an orientation.
_PNG_METADATA = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")

#: Modes without a conversion to RGB of Pillow's own, and the mode on the way to it. ``La`` is ``LA``
#: with the alpha multiplied in; Pillow itself takes it back to ``LA`` after a resize.
_DETOURS = {"La": "LA"}

_PILLOW_IS_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

Data = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Opened:
    """A picture before its pixels are decoded."""

    data: bytes
    pixels: int
    """That the file declares; a scaled JPEG has fewer."""
    image: ImageFile | None
    """None for a format whose reader takes the memory of the whole picture already when it is opened (WebP)."""
    turned: bool
    """Whether it may be turned when it is decoded."""


#: Told of each picture before its pixels are decoded; what it raises ends the decoding.
Admit = Callable[[Opened], None]


def sniff(head: bytes) -> str | None:
    """The format that the first bytes (`HEAD_BYTES` are enough) announce, by Pillow's name, or None."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith(b"BM") and (len(head) < 18 or int.from_bytes(head[14:18], "little") in _DIB_HEADERS):
        return "BMP"
    return None


def judge_header(head: Data, max_pixels: int) -> str:
    """The format that a file's first bytes (`HEADER_BYTES`) announce, unless it or its dimensions are refused.

    `decode` begins with it, so a body that is still arriving is judged as it would be later. No reader of
    Pillow's is opened for it: before 13, WebP's allocated twice the canvas unjudged.

    Raises `EmptyBody`, `UnsupportedMediaType`, `ImageTooLarge`.
    """
    head = bytes(head)
    name = _recognise(head)
    size = declared(name, head)
    if size is not None:
        _judge(*size, max_pixels)
    return name


def decode(data: Data, *, max_pixels: int, at_least: int | None = None) -> Image.Image:
    """The image in ``data``, loaded, upright, of mode RGB. The first frame where there are several.

    ``at_least`` allows a JPEG to be decoded at 1/2, 1/4 or 1/8 of its size (libjpeg's scaled inverse
    DCT), as small as both sides still have that many pixels. It changes the pixels; None never does.

    EXIF that cannot be read means no rotation; only pixels that cannot be read are an error.

    Raises `EmptyBody`, `UnsupportedMediaType`, `ImageTooLarge`, `InvalidImage`, and nothing else for
    any bytes whatever. Takes about 4 bytes a pixel (8 while it rotates or converts, 20 for WebP).
    """
    return to_rgb(load(data, max_pixels=max_pixels, at_least=at_least))


def load(
    data: Data, *, max_pixels: int, at_least: int | None = None, admit: Admit | None = None
) -> Image.Image:
    """`decode` without the last step: RGB, or L, whose grey stands for three equal channels.

    A resize gives the same bits before and after L becomes RGB, at a third of the work. ``admit`` is told of
    the picture before its pixels are decoded.
    """
    name = judge_header(data[:HEADER_BYTES], max_pixels)
    _let_pillow_follow(max_pixels)
    try:
        image: Image.Image = _read(name, data, max_pixels, at_least, admit)
        image = _upright(image)
        return image if image.mode == "L" else to_rgb(image)
    except Image.DecompressionBombError as error:
        raise _too_large(_first_number(error), max_pixels) from error
    except _DAMAGE as error:
        if kind := _unread_kind(name, data, error):
            raise UnsupportedMediaType(f"the image is {kind}, a kind that is not read") from error
        message = f"the bytes begin like a {name} file but cannot be decoded: damaged or truncated"
        raise InvalidImage(message) from error


def _unread_kind(name: str, data: Data, error: Exception) -> str | None:
    """What the image is, where a reader refused a whole file for its kind; None for a damaged one."""
    if name == "JPEG":
        return None if "truncated" in str(error) else unread_jpeg(bytes(data))
    return next((kind for words, kind in _UNREAD.get(name, ()) if str(error).startswith(words)), None)


def _recognise(data: Data) -> str:
    if not len(data):
        raise EmptyBody("there are no bytes where an image was expected")
    name = sniff(bytes(data[:HEAD_BYTES]))
    if name is None:
        raise UnsupportedMediaType(f"the bytes are none of the accepted image formats: {ACCEPTED}")
    return name


def _read(
    name: str, data: Data, max_pixels: int, at_least: int | None, admit: Admit | None = None
) -> Image.Image:
    data = data if isinstance(data, bytes) else bytes(data)
    effort.judge(name, data)
    if admit is not None and name == "WEBP" and (canvas := declared(name, data[:HEADER_BYTES])):
        admit(Opened(data, canvas[0] * canvas[1], None, turned=True))
    image = _READERS[name](io.BytesIO(data))  # shares bytes, copies anything else
    _judge(image.width, image.height, max_pixels)
    pixels = image.width * image.height
    if at_least is not None and isinstance(image, JpegImageFile):
        drafted = image.draft("RGB", (at_least, at_least))
        if drafted is not None:
            image.info[EXTENT] = drafted[1]
    if admit is not None:
        admit(Opened(data, pixels, image, _may_be_turned(name, image, data)))
    image.load()
    return image


def _may_be_turned(name: str, image: Image.Image, data: bytes) -> bool:
    """Whether the file asks for it, as far as that can be told without decoding it."""
    if name == "PNG":  # its metadata may lie behind the pixels, and Pillow decodes these to find it
        return any(kind in data for kind in _PNG_METADATA)
    return _orientation(image) is not None


def _judge(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise _too_large(f"{width} x {height} = {width * height}", max_pixels)
    if max(width, height) > MAX_SIDE:
        raise ImageTooLarge(f"the image is {width} x {height}; no side may have more than {MAX_SIDE} pixels")


def _too_large(pixels: str, max_pixels: int) -> ImageTooLarge:
    return ImageTooLarge(f"the image has {pixels} pixels; max_image_pixels allows {max_pixels}")


def _first_number(error: Exception) -> str:
    found = re.search(r"\d+", str(error))
    return found.group() if found else "too many"


def _let_pillow_follow(max_pixels: int) -> None:
    """Give Pillow our limit and keep it from writing to stderr, here rather than at import.

    Some readers allocate while they open (WebP its canvas, GIF the area that a frame clears), so their
    own check has to hold as well. Pillow raises above twice ``MAX_IMAGE_PIXELS`` and warns above it:
    with half of ours it raises where we would, and the warnings say nothing. Its other warnings speak
    of damaged metadata, which changes no answer. Both are one assignment that every call repeats with
    the same value, so threads do not disturb each other.
    """
    Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2
    if _PILLOW_IS_QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _upright(image: Image.Image) -> Image.Image:
    transposition = _orientation(image)
    if transposition is None:
        return image
    turned = image.transpose(transposition)
    if EXTENT in image.info:
        turned.info[EXTENT] = turned_box(image.info[EXTENT], image.size, transposition)
    return turned


def turned_box(box: Box, size: tuple[int, int], how: Image.Transpose) -> Box:
    """Where a part of an image of ``size`` (width, height) lies when the image is turned."""
    turn = _TURNED_POINTS[how]
    (x0, y0), (x1, y1) = turn(*box[:2], *size), turn(*box[2:], *size)
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """How EXIF wants the image turned; None for not at all, and where it cannot be read. TIFF was turned by its reader.

    A number of any type is taken for what it is equal to, as `ImageOps.exif_transpose` does.
    """
    try:
        return _TRANSPOSITIONS.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except _DAMAGE:
        return None


def to_rgb(image: Image.Image) -> Image.Image:
    """``image.convert("RGB")`` for every mode of Pillow's; the image itself where it is RGB already.

    So alpha is dropped and not blended, CMYK is converted without its profile, and 16-bit and float
    greys are clipped to 0..255 and not scaled: that is what torchvision's users get.
    """
    if image.mode == "RGB":
        return image
    # Transparency of a palette or a grey has no place in RGB. Pillow would try to translate it, with a
    # warning or an error where it cannot; the pixels do not depend on it.
    image.info.pop("transparency", None)
    detour = _DETOURS.get(image.mode)
    return (image.convert(detour) if detour else image).convert("RGB")
