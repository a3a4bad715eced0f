"""The kinds of photo that the client takes, and the bytes that it sends for them."""

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
#: Pillow's modes that PNG can hold. Images of other modes are converted to RGB, as the service would do.
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class File:
    """An encoded image and a name for it."""

    name: str
    data: bytes

    @property
    def media_type(self) -> str:
        """The type that the name suggests. The service itself looks at the bytes."""
        guessed = mimetypes.guess_type(self.name)[0]
        return guessed if guessed and guessed.startswith("image/") else "application/octet-stream"


def read_photo(photo: Photo) -> File:
    """The photo's bytes and a name for them. Pixels are encoded as PNG, which keeps them exactly.

    Raises `OSError` for a file that cannot be read, and `TypeError`, one sentence, for anything that is no photo.
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
    """Reads each photo as `read_photo` does. Raises `TypeError` for one photo in place of several."""
    one = isinstance(photos, str | bytes | bytearray | memoryview | os.PathLike)
    if one or _is_pillows(photos) or hasattr(photos, "read") or not isinstance(photos, Iterable):
        raise TypeError(f"several photos are a list of them, and not {_what(photos)}")
    return [read_photo(photo) for photo in photos]


async def read_in_thread(photo: Photo) -> File:
    """`read_photo` in a thread, since a disk may be slow."""
    return await asyncio.to_thread(read_photo, photo)


async def read_all_in_thread(photos: Iterable[Photo]) -> list[File]:
    """`read_photos` in a thread."""
    return await asyncio.to_thread(read_photos, photos)


def _read(stream: Any) -> File:
    data = stream.read()
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(
            f"a photo's file is read as bytes: open it with mode 'rb' ({_what(stream)} gave {_what(data)})"
        )
    name = getattr(stream, "name", "photo")  # a number for a file that was opened by its descriptor
    return File(Path(name).name if isinstance(name, str) else "photo", bytes(data))


def _is_pillows(photo: object) -> TypeGuard[Image.Image]:
    """True for a Pillow image. Does not import Pillow: without it there can be no such image."""
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
