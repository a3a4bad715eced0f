"""Limits on a file's parts: refuses files that cost far more than their size suggests, before a reader is opened.

Pillow's readers walk through the parts of a file in Python, and some decoders make a pass over all pixels for each
part. So parts are counted: segments and scans of a JPEG, chunks of a PNG, blocks of a GIF, strips and tiles of a
TIFF. The limits lie far above what encoders write. The counting is plain arithmetic on bytes, linear in the file, and
stops at the limit. `service.images.decoders` bounds the cost that remains.
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
    `ImageTooLarge` for a coding that is accepted up to a certain size only.
    """
    if name in _JUDGES:
        _JUDGES[name](data)
