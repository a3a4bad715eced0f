"""Images as base64 in JSON: `{"image": "…"}` of `POST /predict`, and the parts that the other contracts share."""

from __future__ import annotations

import binascii
import re
from typing import Annotated, Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.api import body, documents
from service.errors import EmptyBody, InvalidParameter, PayloadTooLarge

#: The head of a data URL, before its base64 (RFC 2397).
_DATA_URL = re.compile(r"data:[^,;]{0,100}(?:;[^,;]{0,100}){0,4};base64,", re.IGNORECASE)
#: Translates base64's alphabet for URLs into the usual one (RFC 4648), since clients send either.
_USUAL_ALPHABET = str.maketrans("-_", "+/")


class ImageDocument(BaseModel):
    """The JSON body of `POST /predict`."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field(description="The image file as base64, or a data URL.", examples=["/9j/4AAQSkZJRg…"])
    top_k: Annotated[int, Field(ge=1)] | None = None
    activation: Literal["softmax", "none"] | None = None


def is_json(request: Request) -> bool:
    """True if the request's Content-Type is JSON."""
    return body.media_type(request) == "application/json"


def json_limit(max_upload_bytes: int, images: int = 1) -> int:
    """The largest JSON body, in bytes, for ``images`` images of together ``max_upload_bytes`` as base64."""
    return 4 * -(-max_upload_bytes // 3) + body.ENVELOPE + 1024 * images


def parse_image_document(raw: bytes) -> ImageDocument:
    """Parses the JSON body of `POST /predict`. Raises `InvalidParameter` with the first fault."""
    try:
        documents.check(raw)
        return ImageDocument.model_validate_json(raw)
    except ValidationError as errors:
        raise InvalidParameter(documents.first_complaint(errors)) from None


def decode_base64(text: str, name: str, limit: int) -> bytes:
    """Decodes ``text``: base64 in either alphabet, padded or not, or a data URL of it.

    Raises `PayloadTooLarge` above ``limit`` bytes, before they are decoded, `EmptyBody`, and `InvalidParameter` for
    anything but base64. Their messages call the field ``name``.
    """
    header = _DATA_URL.match(text)
    if header is None and text[:5].lower() == "data:":
        raise InvalidParameter(f"{name}: a data URL has to be of base64, as in data:image/jpeg;base64,…")
    start = header.end() if header else 0
    if (len(text) - start) * 3 // 4 > limit + 3:
        raise PayloadTooLarge(f"{name}: more than {limit:,} bytes (max_upload_bytes)")
    encoded = text[start:]
    if "-" in encoded or "_" in encoded:
        encoded = encoded.translate(_USUAL_ALPHABET)
    encoded = encoded.rstrip("=\r\n\t ")
    try:
        data = binascii.a2b_base64(encoded + "=" * (-len(encoded) % 4), strict_mode=True)
    except (binascii.Error, ValueError):
        data = _decode_wrapped(encoded, name)
    if not data:
        raise EmptyBody(f"{name} is empty; give the image's bytes as base64")
    if len(data) > limit:
        raise PayloadTooLarge(f"{name}: more than {limit:,} bytes (max_upload_bytes)")
    return data


def _decode_wrapped(encoded: str, name: str) -> bytes:
    """Decodes base64 in lines, as the command ``base64`` and MIME write it."""
    joined = "".join(encoded.split())
    try:
        return binascii.a2b_base64(joined + "=" * (-len(joined) % 4), strict_mode=True)
    except (binascii.Error, ValueError):
        raise InvalidParameter(f"{name} is no base64 (RFC 4648)") from None
