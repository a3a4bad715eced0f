"""Compresses large answers with gzip for clients that ask for it (RFC 9110, Accept-Encoding)."""

from __future__ import annotations

import re
import zlib
from functools import partial

from fastapi import Request
from starlette.responses import Response

from service.api.context import Context
from service.api.inference import in_a_thread

#: Bytes of an answer from which on compression pays; a smaller one takes hardly fewer packets.
_WORTH_IT = 4096
#: zlib's fastest level: higher ones make the numbers of features little smaller and take much longer.
_LEVEL = 1
#: zlib's number for the gzip format.
_GZIP = 16 + zlib.MAX_WBITS
_CODING = re.compile(r"(?:^|,)\s*(gzip|\*)\s*(?:;\s*q\s*=\s*([0-9.]+)\s*)?(?=,|$)", re.IGNORECASE)


async def packed(request: Request, context: Context, response: Response, deadline: float) -> Response:
    """Returns ``response``, compressed if it is large and the client accepts gzip."""
    response.headers["vary"] = "Accept-Encoding"
    content = bytes(response.body)
    if len(content) < _WORTH_IT or not takes_gzip(request.headers.get("accept-encoding", "")):
        return response
    response.body = await in_a_thread(context, partial(_pack, content), deadline)
    response.headers["content-encoding"] = "gzip"
    response.headers["content-length"] = str(len(response.body))
    return response


def takes_gzip(accept_encoding: str) -> bool:
    """True if the header Accept-Encoding allows gzip, by its name or else by ``*``."""
    weights = {name.lower(): _weight(weight) for name, weight in _CODING.findall(accept_encoding)}
    return weights.get("gzip", weights.get("*", 0.0)) > 0


def _weight(text: str) -> float:
    try:
        return float(text or "1")
    except ValueError:
        return 0.0


def _pack(content: bytes) -> bytes:
    packer = zlib.compressobj(_LEVEL, wbits=_GZIP)
    return packer.compress(content) + packer.flush()
