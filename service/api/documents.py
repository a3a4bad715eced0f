"""JSON that clients send: how much of it may be taken apart in one go.

Parsing holds the interpreter's lock from the first byte to the last, so that the event loop stands still however
many threads there are. A long string costs next to nothing. Values cost, and lists and objects cost more, since the
garbage collector looks at each.
"""

from __future__ import annotations

from service.errors import PayloadTooLarge

#: What a comma, a list and an object cost, in commas: measured, a document of `_MOST` takes some 100 ms.
_LIST, _OBJECT = 4, 16
#: An image of 224 x 224 pixels as nested lists, two as flat ones.
_MOST = 400_000


def check(document: bytes | memoryview) -> None:
    """Raises `PayloadTooLarge` for JSON whose values would hold up everybody else."""
    raw = bytes(document)
    if len(raw) > _MOST // _OBJECT and (
        raw.count(b",") + _LIST * raw.count(b"[") + _OBJECT * raw.count(b"{") > _MOST
    ):
        raise PayloadTooLarge(
            "the JSON holds more numbers and lists than are read in one go; send images as base64 or as binary data"
        )
