"""Undoes the Content-Encoding of a body, within the limit of a body without one."""

from __future__ import annotations

import zlib

from service.errors import InvalidParameter, PayloadTooLarge, UnsupportedMediaType

#: zlib's number for gzip or zlib, recognised by the data.
_EITHER = 32 + zlib.MAX_WBITS
#: RFC 9110, 8.4.1; x-gzip is an old name of gzip.
_KNOWN = ("gzip", "deflate", "x-gzip")


def check(encoding: str) -> str:
    """The encoding that the header Content-Encoding names; empty for none. Raises `UnsupportedMediaType`."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return ""
    if encoding not in _KNOWN:
        raise UnsupportedMediaType(f"Content-Encoding {encoding[:50]!r} is neither gzip nor deflate")
    return encoding


def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """Decompresses ``body``, all members of a gzip file included.

    Raises `PayloadTooLarge` above ``limit`` bytes, before more are decompressed, and `InvalidParameter`.
    """
    pieces: list[bytes] = []
    left = limit
    while body:
        inflater = zlib.decompressobj(_EITHER)
        try:
            piece = inflater.decompress(body, left + 1)
        except zlib.error:
            raise InvalidParameter(
                f"the body is no {encoding}, though its Content-Encoding says so"
            ) from None
        if len(piece) > left:
            raise PayloadTooLarge(f"more than {limit:,} bytes when it is inflated (max_upload_bytes)")
        if not inflater.eof:
            raise InvalidParameter(f"the body's {encoding} is cut off")
        pieces.append(piece)
        left -= len(piece)
        body = inflater.unused_data
    return b"".join(pieces)
