"""Reads request bodies and finds the images in them. Limits hold while the bytes arrive; no disk is used."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from service.api.context import ENVELOPE as ENVELOPE
from service.api.context import context_of
from service.api.inflate import check, inflate
from service.api.intake import Reservation
from service.api.numbers import digits
from service.api.request_state import request_state_of
from service.errors import (
    DeadlineExceeded,
    EmptyBody,
    IntakeFull,
    MalformedMultipart,
    MissingFile,
    PayloadTooLarge,
    TooManyImages,
    UnsupportedMediaType,
)
from service.images.decode import IMAGE_HEADER_BYTES, judge_header
from service.options import wording

#: The largest number of a form's parts that are no images.
_OTHER_PARTS = 16
#: Characters of a Content-Type that are parsed: a usual one has 100, and parsing a megabyte would take seconds.
_MAX_CONTENT_TYPE = 1000
#: Characters of a file's name that an answer repeats: as many as file systems allow.
_MAX_FILE_NAME = 255
#: The largest number of parts of a form with one image.
_MAX_PARTS = 1 + _OTHER_PARTS
#: Seconds above which a deadline counts as none; only routes without a deadline have such.
_EVER = 1e6
_RAW_TYPES = ("image/", "application/octet-stream")


@dataclass
class FormPart:
    """One part of a multipart body."""

    name: str = ""
    filename: str = ""
    data: memoryview = field(default_factory=lambda: memoryview(b""))


#: Checks the first bytes of a body that is still arriving, and raises the error that the whole body would get.
Inspect = Callable[[bytes], None]


def media_type(request: Request) -> str:
    """The request's media type in lower case, without parameters; empty if the client names none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read(request: Request, limit: int, inspect: Inspect | None = None, *, spare: int = 0) -> bytes:
    """Reads the whole body and undoes its Content-Encoding.

    ``inspect`` is called once with the first `IMAGE_HEADER_BYTES` or more, if the rest has not arrived. ``spare`` bytes
    are allowed beyond ``limit``, for a form's own lines.

    Raises `PayloadTooLarge` above these, before the rest is read, `DeadlineExceeded` if the body is not complete by the
    request's deadline, `IntakeFull` if the service holds too many bytes, and what ``inspect`` raises.
    """
    if (digits(request.headers.get("content-length", "")) or 0) > limit + spare:
        raise _too_large(limit)
    encoding = check(request.headers.get("content-encoding", ""))
    state = request_state_of(request)
    left = state.due - time.monotonic()
    loop = asyncio.get_running_loop()
    timer = asyncio.timeout(left if left < _EVER else None)
    held = state.reservation = context_of(request).intake.reserve(lambda: timer.reschedule(loop.time()))
    try:
        async with timer:
            body = await _receive(request, limit, None if encoding else inspect, held, spare)
            held.settle()
            return await _inflated(body, encoding, limit + spare, held) if encoding else body
    except TimeoutError:
        if held.dropped:
            raise IntakeFull("the body stopped coming while others had no room; try again") from None
        raise DeadlineExceeded("the body had not come when the deadline passed") from None


async def _inflated(body: bytes, encoding: str, limit: int, held: Reservation) -> bytes:
    held.grow(limit)
    whole = await asyncio.to_thread(inflate, body, encoding, limit)
    held.shrink(limit + len(body) - len(whole))
    return whole


async def _receive(
    request: Request, limit: int, inspect: Inspect | None, held: Reservation, spare: int
) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit + spare:
            raise _too_large(limit)
        if chunk:  # the last message of a body is often empty
            held.grow(len(chunk))
            chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if inspect is not None and size >= IMAGE_HEADER_BYTES:
            inspect(b"".join(chunks))
            inspect = None


async def one_image(request: Request, limit: int, *, any_type: bool = False) -> bytes | memoryview:
    """Reads the image of ``/predict``: the raw body, or the multipart part named ``file``.

    With ``any_type`` a raw body of any Content-Type counts as an image. An image of a wrong type or of too many pixels
    is refused by its first kilobytes. Raises `RequestError`, and what `read` raises.
    """
    content_type = request.headers.get("content-type", "")
    max_pixels = context_of(request).settings.max_image_pixels
    if not content_type.lower().startswith("multipart/"):
        if any_type:
            content_type = ""

        def inspect(start: bytes) -> None:
            judge_header(_raw(start, content_type), max_pixels)

        return _raw(await read(request, limit, inspect), content_type)

    def inspect_parts(start: bytes) -> None:
        for part in _begun(content_type, start, _MAX_PARTS):
            if part.name == "file" and len(part.data) >= IMAGE_HEADER_BYTES // 2:
                judge_header(part.data, max_pixels)

    body = await read(request, limit, inspect_parts, spare=ENVELOPE)
    images = [part.data for part in parse(content_type, body, most=_MAX_PARTS) if part.name == "file"]
    if not images:
        raise MissingFile("the form has no part named 'file'; send one with: curl -F file=@photo.jpg")
    if len(images) > 1:
        raise TooManyImages("the form has several parts named 'file'; /predict/batch takes several images")
    return _checked(images[0], limit)


async def named_parts(request: Request, limit: int) -> list[FormPart]:
    """Reads the parts of a form with one image, in order. ``limit`` is that of the image, in bytes."""
    content_type = request.headers.get("content-type", "")
    parts = parse(content_type, await read(request, limit + ENVELOPE), most=_MAX_PARTS)
    for part in parts:
        if len(part.data) > limit:
            raise _too_large(limit)
    return parts


async def several_images(request: Request, limit: int, most: int) -> list[FormPart]:
    """Reads the parts named ``files`` of ``/predict/batch``: at most ``most``, of ``limit`` bytes in all."""
    content_type = request.headers.get("content-type", "")
    if not content_type.lower().startswith("multipart/"):
        raise UnsupportedMediaType("several images travel as multipart/form-data, in parts named 'files'")
    parts = parse(content_type, await read(request, limit, spare=ENVELOPE), most=most + _OTHER_PARTS)
    images = [part for part in parts if part.name == "files"]
    if not images:
        raise MissingFile(
            "the form has no part named 'files'; send them with: curl -F files=@a.jpg -F files=@b.jpg"
        )
    if len(images) > most:
        raise too_many(len(images), most)
    return images


def too_many(count: int, most: int) -> TooManyImages:
    return TooManyImages(f"{count} images in one request; {most} are allowed (max_images_per_request)")


def parse(content_type: str, body: bytes, most: int) -> list[FormPart]:
    """The parts of a multipart body, as views of it.

    Raises `MalformedMultipart`, or `TooManyImages` for more than ``most`` parts.
    """
    collector = _collect(content_type, body, most)
    if not collector.complete:
        raise MalformedMultipart("the body ends before its last boundary")
    return collector.parts


def _begun(content_type: str, start: bytes, most: int) -> list[FormPart]:
    """The parts in the first bytes of a multipart body; the last one may be incomplete."""
    return _collect(content_type, start, most).parts


def _collect(content_type: str, body: bytes, most: int) -> _Collector:
    boundary = parse_options_header(content_type[:_MAX_CONTENT_TYPE])[1].get(b"boundary")
    if not boundary:
        raise MalformedMultipart("the Content-Type names no boundary")
    collector = _Collector(body, most)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": collector.begin,
                "on_header_field": collector.header_field,
                "on_header_value": collector.header_value,
                "on_header_end": collector.header_end,
                "on_part_data": collector.part_data,
                "on_end": collector.end,
            },
        )
        parser.write(body)
    except FormParserError:
        raise MalformedMultipart("the body does not follow the boundary in its Content-Type") from None
    return collector


class _Collector:
    """Collects the parts from the parser's callbacks. The parser gets the body in one piece, and so does each part."""

    def __init__(self, body: bytes, most: int) -> None:
        self.parts: list[FormPart] = []
        self.complete = False
        self._view = memoryview(body)
        self._most = most
        self._field = b""
        self._value = b""

    def begin(self) -> None:
        if len(self.parts) >= self._most:
            raise TooManyImages(f"more than {self._most} parts in one request (max_images_per_request)")
        self.parts.append(FormPart())

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            options = parse_options_header(self._value)[1]
            self.parts[-1].name = options.get(b"name", b"").decode("utf-8", "replace")
            filename = options.get(b"filename", b"").decode("utf-8", "replace")
            self.parts[-1].filename = filename[:_MAX_FILE_NAME]
        self._field = self._value = b""

    def part_data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].data = self._view[start:end]

    def end(self) -> None:
        self.complete = True


def _raw(body: bytes, content_type: str) -> bytes:
    if not body:
        raise EmptyBody("the body is empty; send the image's bytes")
    if content_type and not content_type.lower().startswith(_RAW_TYPES):
        raise UnsupportedMediaType(
            f"Content-Type {content_type[:100]!r} is neither multipart/form-data nor image/* nor application/json; "
            "for a raw body add: -H 'Content-Type: image/jpeg'"
        )
    return body


def _checked(image: memoryview, limit: int) -> memoryview:
    if not image:
        raise EmptyBody("the part 'file' is empty; send the image's bytes")
    if len(image) > limit:
        raise _too_large(limit)
    return image


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the upload is larger than {wording.size(limit)} (max_upload_bytes)")
