"""The limit on JSON that clients send, and the sentence for JSON that does not fit.

Parsing holds the interpreter's lock from the first byte to the last, and blocks the event loop even from another
thread. A long string costs next to nothing. Values cost more, and lists and objects most, since the garbage collector
visits each.
"""

from __future__ import annotations

from pydantic import ValidationError

from service.errors import PayloadTooLarge

#: The cost of a list and of an object, where a comma costs 1 (measured).
_LIST, _OBJECT = 4, 16
#: The largest cost of a document, about 100 ms: one image of 224 x 224 pixels as nested lists, or two as flat ones.
_MAX_COST = 400_000


def check(document: bytes | memoryview) -> None:
    """Raises `PayloadTooLarge` for JSON that would block the event loop for too long."""
    raw = bytes(document)
    if len(raw) > _MAX_COST // _OBJECT and (
        raw.count(b",") + _LIST * raw.count(b"[") + _OBJECT * raw.count(b"{") > _MAX_COST
    ):
        raise PayloadTooLarge(
            "the JSON holds more numbers and lists than are read in one go; send images as base64 or as binary data"
        )


def first_complaint(errors: ValidationError) -> str:
    """One sentence for the first of ``errors``, which does not repeat the client's input."""
    first = errors.errors(include_input=False, include_url=False)[0]
    place = ".".join(map(str, first["loc"]))[:100]
    return f"{place or 'the body'}: {first['msg']}"[:300]
