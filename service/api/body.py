"""From a request's bytes to the images in it. Limits hold while the bytes arrive; nothing touches a disk."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from service.errors import (
    EmptyBody,
    MalformedMultipart,
    MissingFile,
    PayloadTooLarge,
    TooManyImages,
    UnsupportedMediaType,
)

#: Room for a multipart body's own lines around an image of exactly ``max_upload_bytes``.
ENVELOPE = 64 * 1024
#: Parts that are no image: a form may have a few fields, not thousands.
_OTHER_PARTS = 16
_RAW_TYPES = ("image/", "application/octet-stream")


@dataclass
class Part:
    """One part of a multipart body."""

    name: str = ""
    filename: str = ""
    data: memoryview = field(default_factory=lambda: memoryview(b""))


async def read(request: Request, limit: int) -> bytes:
    """The whole body. Raises `PayloadTooLarge` past ``limit`` bytes, before the rest is read."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def one_image(request: Request, limit: int) -> bytes | memoryview:
    """The image of ``/predict``: the raw body, or the multipart part named ``file``."""
    content_type = request.headers.get("content-type", "")
    if not content_type.startswith("multipart/"):
        return _raw(await read(request, limit), content_type)
    parts = parse(content_type, await read(request, limit + ENVELOPE), most=1 + _OTHER_PARTS)
    images = [part.data for part in parts if part.name == "file"]
    if not images:
        raise MissingFile("the form has no part named 'file'; send one with: curl -F file=@photo.jpg")
    if len(images) > 1:
        raise TooManyImages("the form has several parts named 'file'; /predict/batch takes several images")
    return _checked(images[0], limit)


async def several_images(request: Request, limit: int, most: int) -> list[Part]:
    """The parts named ``files`` of ``/predict/batch``, in order. ``limit`` bytes for all of them together."""
    content_type = request.headers.get("content-type", "")
    if not content_type.startswith("multipart/"):
        raise UnsupportedMediaType("several images travel as multipart/form-data, in parts named 'files'")
    parts = parse(content_type, await read(request, limit + ENVELOPE), most=most + _OTHER_PARTS)
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
    boundary = parse_options_header(content_type)[1].get(b"boundary")
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
    if not collector.complete:
        raise MalformedMultipart("the body ends before its last boundary")
    return collector.parts


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
            self.parts[-1].filename = options.get(b"filename", b"").decode("utf-8", "replace")
        self._field = self._value = b""

    def part_data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].data = self._view[start:end]

    def end(self) -> None:
        self.complete = True


def _raw(body: bytes, content_type: str) -> bytes:
    if not body:
        raise EmptyBody("the body is empty; send the image's bytes")
    if not content_type.lower().startswith(_RAW_TYPES):
        raise UnsupportedMediaType(
            f"Content-Type {content_type[:100] or '(none)'!r} is neither multipart/form-data nor image/*; "
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
    return PayloadTooLarge(f"more than {limit:,} bytes (max_upload_bytes)")
