"""Files that cost far more than their bytes and pixels let expect, told by their markers before a reader is opened.

Pillow's readers walk through the parts of a file in Python, and some decoders pass over all pixels once for each part.
So what is counted here are parts: segments and scans of a JPEG, chunks of a PNG, blocks of a GIF, strips and tiles of a
TIFF. The limits lie far above what encoders write. Plain arithmetic on bytes, linear in the file, and it stops at the
limit. What a file costs all the same is bounded where it is decoded (`service.images.decoders`).
"""

from __future__ import annotations

from collections.abc import Callable

from service.images.effort.bmp import judge as _bmp
from service.images.effort.gif import judge as _gif
from service.images.effort.jpeg import judge as _jpeg
from service.images.effort.png import judge as _png
from service.images.effort.tiff import judge as _tiff

_JUDGES: dict[str, Callable[[bytes], None]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "GIF": _gif,
    "TIFF": _tiff,
    "BMP": _bmp,
}


def judge(name: str, data: bytes) -> None:
    """Refuses a whole file of format ``name`` that has more parts than any encoder writes.

    WebP has no entry: libwebp decodes one frame, and its cost follows the canvas. Raises `InvalidImage`, or
    `ImageTooLarge` for a coding that is read up to a size only.
    """
    if name in _JUDGES:
        _JUDGES[name](data)
