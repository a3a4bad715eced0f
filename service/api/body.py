"""From a request's bytes to the images in it. Limits hold while the bytes arrive; nothing touches a disk."""

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
from service.api.exchange import exchange_of
from service.api.inflate import check, inflate
from service.api.intake import Share
from service.api.numbers import digits
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
from service.images.decode import HEADER_BYTES, judge_header
from service.options import wording

#: Parts that are no image: a form may have a few fields, not thousands.
_OTHER_PARTS = 16
#: A multipart Content-Type is 100 characters long; its parser takes seconds for a megabyte.
_LONGEST_TYPE = 1000
#: Characters of a file's name that an answer repeats: what file systems allow.
_LONGEST_NAME = 255
#: Parts of a form with one image.
_MOST = 1 + _OTHER_PARTS
#: Seconds; no deadline is as far away, but for that of a route which has none.
_EVER = 1e6
_RAW_TYPES = ("image/", "application/octet-stream")


@dataclass
class Part:
    """One part of a multipart body."""

    name: str = ""
    filename: str = ""
    data: memoryview = field(default_factory=lambda: memoryview(b""))


#: Looks at the first bytes of a body that is still arriving, and raises what would be its answer anyway.
Look = Callable[[bytes], None]


def media_type(request: Request) -> str:
    """The body's type in small letters, without parameters; "" where the client names none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read(request: Request, limit: int, look: Look | None = None, *, spare: int = 0) -> bytes:
    """The whole body, without its Content-Encoding. ``look`` gets its first `HEADER_BYTES` or more, once, if there is
    more to come. ``spare`` bytes may come on top of ``limit``, for what is around the images.

    Raises `PayloadTooLarge` past them, before the rest is read, `DeadlineExceeded` when it has not
    come by the request's deadline, `IntakeFull` when the service holds too much, and whatever ``look`` raises.
    """
    if (digits(request.headers.get("content-length", "")) or 0) > limit + spare:
        raise _too_large(limit)
    encoding = check(request.headers.get("content-encoding", ""))
    exchange = exchange_of(request)
    left = exchange.due - time.monotonic()
    loop = asyncio.get_running_loop()
    timer = asyncio.timeout(left if left < _EVER else None)
    share = exchange.share = context_of(request).intake.share(lambda: timer.reschedule(loop.time()))
    try:
        async with timer:
            body = await _receive(request, limit, None if encoding else look, share, spare)
            share.settle()
            return await _inflated(body, encoding, limit + spare, share) if encoding else body
    except TimeoutError:
        if share.dropped:
            raise IntakeFull("the body stopped coming while others had no room; try again") from None
        raise DeadlineExceeded("the body had not come when the deadline passed") from None


async def _inflated(body: bytes, encoding: str, limit: int, share: Share) -> bytes:
    share.grow(limit)
    whole = await asyncio.to_thread(inflate, body, encoding, limit)
    share.shrink(limit + len(body) - len(whole))
    return whole


async def _receive(request: Request, limit: int, look: Look | None, share: Share, spare: int) -> bytes:
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
        if chunk:  # a chunk may be one byte, and a list of ten million of them large
            share.grow(len(chunk))
            chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if look is not None and size >= HEADER_BYTES:
            look(b"".join(chunks))
            look = None


async def one_image(request: Request, limit: int, *, any_type: bool = False) -> bytes | memoryview:
    """The image of ``/predict``: the raw body, or the multipart part named ``file``.

    With ``any_type`` a raw body is an image whatever its Content-Type says.

    One that cannot be served, by type or dimensions, is refused from its first kilobytes.
    """
    content_type = request.headers.get("content-type", "")
    max_pixels = context_of(request).settings.max_image_pixels
    if not content_type.lower().startswith("multipart/"):
        if any_type:
            content_type = ""

        def look(start: bytes) -> None:
            judge_header(_raw(start, content_type), max_pixels)

        return _raw(await read(request, limit, look), content_type)

    def look_inside(start: bytes) -> None:
        for part in _begun(content_type, start, _MOST):
            if part.name == "file" and len(part.data) >= HEADER_BYTES // 2:
                judge_header(part.data, max_pixels)

    body = await read(request, limit, look_inside, spare=ENVELOPE)
    images = [part.data for part in parse(content_type, body, most=_MOST) if part.name == "file"]
    if not images:
        raise MissingFile("the form has no part named 'file'; send one with: curl -F file=@photo.jpg")
    if len(images) > 1:
        raise TooManyImages("the form has several parts named 'file'; /predict/batch takes several images")
    return _checked(images[0], limit)


async def named_parts(request: Request, limit: int) -> list[Part]:
    """The parts of a form with one picture, in order. ``limit`` is the picture's, in bytes."""
    content_type = request.headers.get("content-type", "")
    parts = parse(content_type, await read(request, limit + ENVELOPE), most=_MOST)
    for part in parts:
        if len(part.data) > limit:
            raise _too_large(limit)
    return parts


async def several_images(request: Request, limit: int, most: int) -> list[Part]:
    """The parts named ``files`` of ``/predict/batch``, in order. ``limit`` bytes for all of them together."""
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


def parse(content_type: str, body: bytes, most: int) -> list[Part]:
    """The parts of a multipart body, as views of it.

    Raises `MalformedMultipart`, or `TooManyImages` when there are more than ``most`` parts.
    """
    collector = _collect(content_type, body, most)
    if not collector.complete:
        raise MalformedMultipart("the body ends before its last boundary")
    return collector.parts


def _begun(content_type: str, start: bytes, most: int) -> list[Part]:
    """The parts in the first bytes of a multipart body; what there is of the last one."""
    return _collect(content_type, start, most).parts


def _collect(content_type: str, body: bytes, most: int) -> _Collector:
    boundary = parse_options_header(content_type[:_LONGEST_TYPE])[1].get(b"boundary")
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
        raise MalformedMultipart("the body is not what its boundary says") from None
    return collector


class _Collector:
    """Gathers the parser's callbacks. It is given the whole body at once, so a part's data is one piece."""

    def __init__(self, body: bytes, most: int) -> None:
        self.parts: list[Part] = []
        self.complete = False
        self._view = memoryview(body)
        self._most = most
        self._field = b""
        self._value = b""

    def begin(self) -> None:
        if len(self.parts) >= self._most:
            raise TooManyImages(f"more than {self._most} parts in one request (max_images_per_request)")
        self.parts.append(Part())

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            options = parse_options_header(self._value)[1]
            self.parts[-1].name = options.get(b"name", b"").decode("utf-8", "replace")
            filename = options.get(b"filename", b"").decode("utf-8", "replace")
            self.parts[-1].filename = filename[:_LONGEST_NAME]
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
