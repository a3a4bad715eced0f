"""GIF89a: blocks before the first image. Pillow reads each of them in Python, and stray bytes one by one."""

from __future__ import annotations

from service.errors import InvalidImage

#: Most blocks before the first image. Ten megabytes of comment in the largest blocks are 41,000.
MAX_BLOCKS = 65_536

_EXTENSION, _IMAGE, _TRAILER = b"!,;"


def judge(data: bytes) -> None:
    """Raises `InvalidImage`."""
    at = 13
    if len(data) > 10 and data[10] & 0x80:
        at += 3 << ((data[10] & 7) + 1)
    blocks = 0
    while at < len(data):
        blocks += 1
        if blocks > MAX_BLOCKS:
            raise InvalidImage(f"the GIF has more than {MAX_BLOCKS} blocks before its first image")
        first = data[at]
        if first in (_IMAGE, _TRAILER):
            return
        at += 1
        if first != _EXTENSION:
            continue
        at += 1  # the label
        while at < len(data) and (length := data[at]):
            at += 1 + length
            blocks += 1
            if blocks > MAX_BLOCKS:
                break
        at += 1
