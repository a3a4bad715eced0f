"""Bytes → an upright RGB image. Only exceptions of `service.errors` leave this file.

    sniff        which of the six accepted formats the first bytes announce; nothing else is ever decoded
    open         the one Pillow reader of that format; it reads headers only
    judge        the parts of the file against what encoders write (service.images.effort), and the pixels that the
                 header declares against the limit, before any is decoded
    load         the pixels; of several frames the first
    orient       by EXIF (or XMP), as ``ImageOps.exif_transpose`` does
    to_rgb       every colour mode, as ``Image.convert("RGB")`` does

Pillow only. Thread-safe as long as all threads pass the same ``max_pixels``.
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

#: The accepted formats by Pillow's names, each with the one class that may read it. The classes are called directly
#: because ``Image.open`` would load every plugin and hand a JPEG with a multi-picture header to a seventh reader
#: (MPO).
_READERS: dict[str, type[ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
}

ACCEPTED = "JPEG, PNG, WebP, GIF, BMP and TIFF"

#: Longest side in pixels: the most that JPEG can hold. The weights of a resize grow with the side and not with the
#: area, so an image of 50,000,000 x 1 would pass the limit of pixels and still cost gigabytes.
MAX_SIDE = 65_535

#: Key in ``Image.info`` of the part of a scaled JPEG that holds the photo: left, top, right, bottom in pixels, with
#: fractions. The last row and column reach beyond it where the scale does not divide the sides. Only scaled JPEGs
#: have it.
EXTENT = "imagenet-serve extent"

Box = tuple[float, float, float, float]

#: Number of first bytes that `sniff` needs.
MAGIC_BYTES = 18

#: Number of first bytes that `judge_header` needs. A JPEG's size may stand later, behind large metadata; then the
#: decoder judges it.
IMAGE_HEADER_BYTES = 4096

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II\0*", "TIFF"),  # swapped magic: Pillow goes by the first two bytes, and so does this table
    (b"MM*\0", "TIFF"),
    (b"II+\0", "TIFF"),  # BigTIFF
    (b"MM\0+", "TIFF"),
)

#: Sizes of the header that follows a bitmap's file header. They alone tell a bitmap from a text that begins with BM.
_DIB_HEADERS = (12, 40, 52, 56, 64, 108, 124)

#: Exceptions that mean a damaged image (422) when Pillow's readers raise them. Its documentation promises OSError,
#: but the readers do index and struct arithmetic on hostile input, and each class here was seen or can be read in
#: them. The list is broad so that no damaged image becomes a failed service (500). It guards calls of Pillow only:
#: errors of this project's own arithmetic still show.
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

#: By format: the beginning of a Pillow message that means "a whole file of a kind that I do not read", and that kind.
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
#: By transposition: where the point (x, y) of an image of width w and height h goes.
_TURNED_POINTS: dict[Image.Transpose, Callable[[float, float, int, int], tuple[float, float]]] = {
    Image.Transpose.FLIP_LEFT_RIGHT: lambda x, y, w, h: (w - x, y),
    Image.Transpose.ROTATE_180: lambda x, y, w, h: (w - x, h - y),
    Image.Transpose.FLIP_TOP_BOTTOM: lambda x, y, w, h: (x, h - y),
    Image.Transpose.TRANSPOSE: lambda x, y, w, h: (y, x),
    Image.Transpose.ROTATE_270: lambda x, y, w, h: (h - y, x),
    Image.Transpose.TRANSVERSE: lambda x, y, w, h: (h - y, w - x),
    Image.Transpose.ROTATE_90: lambda x, y, w, h: (y, w - x),
}

#: PNG chunks that may hold an EXIF orientation.
_PNG_METADATA = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")

#: Modes that Pillow does not convert to RGB directly, and the mode in between. ``La`` is ``LA`` with the alpha
#: multiplied in; Pillow itself returns to ``LA`` after a resize.
_DETOURS = {"La": "LA"}

_PILLOW_IS_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

Data = bytes | bytearray | memoryview


@dataclass(frozen=True)
class OpenedImage:
    """A picture before its pixels are decoded."""

    data: bytes
    pixels: int
    """Pixels that the file declares; a scaled JPEG decodes fewer."""
    image: ImageFile | None
    """Pillow's image; None for WebP, whose reader allocates the whole picture as soon as it is opened."""
    turned: bool
    """True if decoding may rotate or flip the picture."""


#: Called with each picture before its pixels are decoded. An exception that it raises ends the decoding.
Admit = Callable[[OpenedImage], object]


def sniff(head: bytes) -> str | None:
    """Returns the format of a file by its first `MAGIC_BYTES`, as Pillow names it; None if it is not accepted."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith(b"BM") and (len(head) < 18 or int.from_bytes(head[14:18], "little") in _DIB_HEADERS):
        return "BMP"
    return None


def judge_header(head: Data, max_pixels: int) -> str:
    """Returns the format that a file's first bytes (`IMAGE_HEADER_BYTES`) announce, by Pillow's name.

    `decode` calls this first, so a body that is still arriving gets the verdict that it would get later. No Pillow
    reader is opened for it: WebP's would need the whole file.

    Raises `EmptyBody`, `UnsupportedMediaType`, or `ImageTooLarge` if the declared dimensions exceed the limits.
    """
    head = bytes(head)
    name = _recognise(head)
    size = declared(name, head)
    if size is not None:
        _judge(*size, max_pixels)
    return name


def decode(data: Data, *, max_pixels: int, at_least: int | None = None) -> Image.Image:
    """Decodes ``data`` to an upright image of mode RGB, its pixels loaded; of several frames the first.

    ``at_least`` allows a JPEG to be decoded at 1/2, 1/4 or 1/8 of its size (libjpeg's scaled inverse DCT), as long as
    both sides keep that many pixels. A scaled decode changes the pixels; None never scales.

    EXIF that cannot be read means no rotation; only pixels that cannot be read are an error.

    Raises `EmptyBody`, `UnsupportedMediaType`, `ImageTooLarge` or `InvalidImage`, and nothing else for any bytes.
    Takes about 4 bytes of memory a pixel (8 while it rotates or converts, 20 for WebP).
    """
    return to_rgb(load(data, max_pixels=max_pixels, at_least=at_least))


def load(
    data: Data, *, max_pixels: int, at_least: int | None = None, admit: Admit | None = None
) -> Image.Image:
    """Decodes like `decode`, but leaves a grey image in mode L, whose value stands for three equal channels.

    A resize gives the same bits before and after L becomes RGB, at a third of the work. ``admit`` is called with the
    picture before its pixels are decoded. Raises what `decode` raises.
    """
    name = judge_header(data[:IMAGE_HEADER_BYTES], max_pixels)
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
    """Returns the kind of a whole file that its reader does not read, in words; None for a damaged file."""
    if name == "JPEG":
        return None if "truncated" in str(error) else unread_jpeg(bytes(data))
    return next((kind for words, kind in _UNREAD.get(name, ()) if str(error).startswith(words)), None)


def _recognise(data: Data) -> str:
    if not len(data):
        raise EmptyBody("there are no bytes where an image was expected")
    name = sniff(bytes(data[:MAGIC_BYTES]))
    if name is None:
        raise UnsupportedMediaType(f"the bytes are none of the accepted image formats: {ACCEPTED}")
    return name


def _read(
    name: str, data: Data, max_pixels: int, at_least: int | None, admit: Admit | None = None
) -> Image.Image:
    data = data if isinstance(data, bytes) else bytes(data)
    effort.judge(name, data)
    if admit is not None and name == "WEBP" and (canvas := declared(name, data[:IMAGE_HEADER_BYTES])):
        admit(OpenedImage(data, canvas[0] * canvas[1], None, turned=True))
    image = _READERS[name](io.BytesIO(data))  # shares bytes, copies anything else
    _judge(image.width, image.height, max_pixels)
    pixels = image.width * image.height
    if at_least is not None and isinstance(image, JpegImageFile):
        drafted = image.draft("RGB", (at_least, at_least))
        if drafted is not None:
            image.info[EXTENT] = drafted[1]
    if admit is not None:
        admit(OpenedImage(data, pixels, image, _may_be_turned(name, image, data)))
    image.load()
    return image


def _may_be_turned(name: str, image: Image.Image, data: bytes) -> bool:
    """Returns True if the file asks for a rotation, as far as that shows before decoding."""
    if name == "PNG":  # a PNG's metadata may lie behind the pixels, and Pillow decodes them to find it
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
    """Sets Pillow's own pixel limit and silences its warnings, here rather than at import.

    Some readers allocate while they open (WebP its canvas, GIF the area that a frame clears), so Pillow's check has
    to hold as well. Pillow warns above ``MAX_IMAGE_PIXELS`` and raises above twice that value: half of our limit
    makes it raise where we would. Its other warnings are about damaged metadata, which changes no answer. Every call
    assigns the same values, so threads do not disturb each other.
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
    """Returns where a part of an image of ``size`` (width, height) lies after the transposition ``how``."""
    turn = _TURNED_POINTS[how]
    (x0, y0), (x1, y1) = turn(*box[:2], *size), turn(*box[2:], *size)
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """Returns the transposition that EXIF asks for; None for none, and where EXIF cannot be read.

    Pillow's TIFF reader has applied it already. A number of any type counts as what it equals, as in
    `ImageOps.exif_transpose`.
    """
    try:
        return _TRANSPOSITIONS.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except _DAMAGE:
        return None


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns ``image.convert("RGB")`` for every mode of Pillow's; the image itself where it is RGB already.

    Alpha is dropped and not blended, CMYK is converted without its profile, and 16-bit and float greys are clipped to
    0..255 and not scaled: torchvision's users get exactly this.
    """
    if image.mode == "RGB":
        return image
    # RGB cannot hold the transparency of a palette or a grey. Pillow would try to translate it, with a warning or an
    # error where it cannot; the pixels do not depend on it.
    image.info.pop("transparency", None)
    detour = _DETOURS.get(image.mode)
    return (image.convert(detour) if detour else image).convert("RGB")
