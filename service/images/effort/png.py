"""PNG (W3C): limits on chunks. Pillow checks and handles each in Python, before and behind the pixels."""

from __future__ import annotations

from service.errors import InvalidImage

#: Most chunks. Libraries write pixels in chunks of 8 KiB and more; a chunk costs Pillow some microseconds.
MAX_CHUNKS = 20_000
#: Most compressed profiles and texts: each is inflated up to a megabyte.
MAX_COMPRESSED = 100

_COMPRESSED = frozenset({b"iCCP", b"zTXt", b"iTXt"})


def judge(data: bytes) -> None:
    """Raises `InvalidImage`."""
    at, chunks, compressed = 8, 0, 0
    while at + 8 <= len(data):
        name = data[at + 4 : at + 8]
        chunks += 1
        compressed += name in _COMPRESSED
        if chunks > MAX_CHUNKS:
            raise InvalidImage(f"the PNG has more than {MAX_CHUNKS} chunks")
        if compressed > MAX_COMPRESSED:
            raise InvalidImage(f"the PNG has more than {MAX_COMPRESSED} compressed profiles and texts")
        if name == b"IEND":
            return
        at += 12 + int.from_bytes(data[at : at + 4], "big")
