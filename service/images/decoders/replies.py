"""Reads the replies of decoder processes: results, costs, refusals and defects."""

from __future__ import annotations

import logging
import struct

import numpy as np
from PIL import Image

from service import errors
from service.images.decoders import wire
from service.images.decoders.cost import Cost
from service.images.decoders.decoder import DecoderHandle
from service.images.decoders.job import Job
from service.images.decoders.wire import ReplyKind
from service.images.overlay import MAX_SIDE

log = logging.getLogger(__name__)

_REFUSALS: dict[str, type[errors.RequestError]] = {
    error.code: error for error in errors.RequestError.__subclasses__()
}


def read(decoder: DecoderHandle, frame: bytes) -> Cost | Exception | None:
    """Returns the cost that a picture needs, its error, or None for a picture that is done, whose pixels it copies.

    Raises `ValueError` for a reply that is malformed or answers no current order.
    """
    try:
        number, kind = wire.REPLY.unpack_from(frame)
        if not decoder.is_current(number):
            raise ValueError("a reply to no order")
        return _result(decoder, ReplyKind(kind), frame[wire.REPLY.size :])
    except struct.error as error:
        raise ValueError("a reply that ends early") from error


def _result(decoder: DecoderHandle, kind: ReplyKind, content: bytes) -> Cost | Exception | None:
    job = decoder.job
    assert job is not None
    if kind is ReplyKind.DONE:
        _take_pixels(decoder, job, *wire.SIZES.unpack(content))
        return None
    if kind is ReplyKind.NEEDS:
        return Cost(*wire.NEEDED.unpack(content))
    if kind is ReplyKind.REFUSED:
        code, _, words = content.decode(errors="replace").partition("\n")
        if code not in _REFUSALS:
            raise ValueError(code)
        return _REFUSALS[code](words)
    log.error("decoding a %s failed: %s", job.picture.format, content.decode(errors="replace"))
    return errors.InternalError("something went wrong inside the service; its log has the reason")


def _take_pixels(decoder: DecoderHandle, job: Job, height: int, width: int, rows: int, columns: int) -> None:
    if max(rows, columns) > MAX_SIDE or bool(rows) != job.picture.drawn:
        raise ValueError("a photo of another size")
    if not job.wanted:
        return
    np.copyto(job.pixels, decoder.pixels)
    job.picture.size = (height, width)
    if rows:
        job.picture.photo = Image.frombytes("RGB", (columns, rows), decoder.photo(rows, columns))
