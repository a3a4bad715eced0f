"""What may be given for a photo, and the bytes that travel for it."""

from __future__ import annotations

import asyncio
import io
import mimetypes
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeGuard, Union

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

#: A file's path, its bytes, an open file, a Pillow image, or pixels: uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4].
Photo: TypeAlias = Union[
    str, os.PathLike[str], bytes, bytearray, memoryview, BinaryIO, "Image.Image", NDArray[np.uint8]
]

_KINDS = "a path, bytes, a file that is open for reading bytes, a Pillow image or a uint8 array"
#: What PNG can hold; any other mode becomes RGB here, by the same function as in the service.
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class File:
    """An encoded image and a name for it."""

    name: str
    data: bytes

    @property
    def media_type(self) -> str:
        """By the name, as a courtesy: the service goes by the bytes."""
        guessed = mimetypes.guess_type(self.name)[0]
        return guessed if guessed and guessed.startswith("image/") else "application/octet-stream"


def read_photo(photo: Photo) -> File:
    """The bytes, with a name for them. Pixels travel as PNG, so that none of them changes.

    Raises `OSError` for a file that cannot be read, and `TypeError` in one sentence for what is no photo.
    """
    if isinstance(photo, bytes | bytearray | memoryview):
        return File("photo", bytes(photo))
    if isinstance(photo, str | os.PathLike):
        path = Path(photo)
        return File(path.name, path.read_bytes())
    if _is_pillows(photo):
        from PIL import ImageOps

        return _encoded(ImageOps.exif_transpose(photo))
    if isinstance(photo, np.ndarray):
        return _encoded(_image(photo))
    if hasattr(photo, "read"):
        return _read(photo)
    raise TypeError(f"a photo is {_KINDS}, and not {_what(photo)}")


def read_photos(photos: Iterable[Photo]) -> list[File]:
    """Each of several. Raises as `read_photo`, and `TypeError` for one photo in place of several."""
    one = isinstance(photos, str | bytes | bytearray | memoryview | os.PathLike)
    if one or _is_pillows(photos) or hasattr(photos, "read") or not isinstance(photos, Iterable):
        raise TypeError(f"several photos are a list of them, and not {_what(photos)}")
    return [read_photo(photo) for photo in photos]


async def read_aside(photo: Photo) -> File:
    """In a thread: a disk may take its time."""
    return await asyncio.to_thread(read_photo, photo)


async def read_all_aside(photos: Iterable[Photo]) -> list[File]:
    """The same of several."""
    return await asyncio.to_thread(read_photos, photos)


def _read(stream: Any) -> File:
    data = stream.read()
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(
            f"a photo's file is read as bytes: open it with mode 'rb' ({_what(stream)} gave {_what(data)})"
        )
    name = getattr(stream, "name", "photo")  # of a file without a name, a number
    return File(Path(name).name if isinstance(name, str) else "photo", bytes(data))


def _is_pillows(photo: object) -> TypeGuard[Image.Image]:
    """Whether it is a Pillow image: then somebody has imported Pillow already."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(photo, pillow.Image)


def _image(pixels: NDArray[Any]) -> Image.Image:
    from PIL import Image

    fits = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in _CHANNELS)
    if pixels.dtype != np.uint8 or not fits or 0 in pixels.shape:
        shape = ", ".join(map(str, pixels.shape))
        raise TypeError(
            "an array of pixels is uint8 [height, width] or [height, width, 1, 3 or 4], and not "
            f"{pixels.dtype} [{shape}]"
        )
    return Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)


def _encoded(image: Image.Image) -> File:
    buffer = io.BytesIO()
    plain = image if image.mode in _PNG_MODES else image.convert("RGB")
    plain.save(buffer, "PNG", compress_level=1)
    return File("photo.png", buffer.getvalue())


def _what(value: object) -> str:
    return "None" if value is None else f"'{type(value).__name__}'"
