"""What the compatible contracts share: admission, the picture in the body, logits, and errors in a contract's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import Request
from numpy.typing import NDArray
from pydantic import JsonValue
from pydantic_core import from_json

from service.api import base64_images, body, documents
from service.api.admission import Admission
from service.api.context import Context
from service.api.errors import ErrorDocument
from service.api.exchange import Exchange
from service.api.inference import in_a_thread
from service.errors import (
    EmptyBody,
    InvalidParameter,
    MalformedRequest,
    NotFound,
    ServiceError,
    TooManyImages,
)
from service.observability.card import ModelCard
from service.shared.ranking import activate, top

#: The one version that a model has.
VERSION = "1"


def only_error(error: ServiceError, status: int) -> dict[str, Any]:
    """The form that TF-Serving, KServe, Vertex AI and Hugging Face share: ``{"error": "…"}``."""
    return {"error": str(error)}


class CompatRequest(Admission):
    """A request by another server's contract: its body in the forms that the contracts have, and its answer."""

    def __init__(self, context: Context, exchange: Exchange, name: str | None, request: Request) -> None:
        super().__init__(context, exchange, name, request)
        self.request = request

    @property
    def model(self) -> ModelCard:
        """The model that it is for."""
        return self.served.card

    async def json(self) -> dict[str, JsonValue]:
        """The body, a JSON object. Raises `EmptyBody`, `MalformedRequest`, `PayloadTooLarge`."""
        settings = self.context.settings
        limit = base64_images.json_limit(settings.max_upload_bytes, settings.max_images_per_request)
        raw = await body.read(self.request, limit)
        if not raw:
            raise EmptyBody("the body is empty; it has to be a JSON object")

        def parse() -> JsonValue:
            documents.check(raw)
            try:
                document: JsonValue = from_json(raw, allow_inf_nan=False)
            except ValueError:
                raise MalformedRequest("the body is no JSON") from None
            return document

        document = await in_a_thread(self.context, parse, self.deadline)
        if not isinstance(document, dict):
            raise InvalidParameter("the body has to be a JSON object")
        return document

    async def pictures(self, encoded: Sequence[tuple[str, str]]) -> list[bytes]:
        """The bytes of base64 strings, given with their names. ``max_upload_bytes`` holds for all of them together."""
        most = self.context.settings.max_images_per_request
        if len(encoded) > most:
            raise body.too_many(len(encoded), most)

        def decode() -> list[bytes]:
            left, found = self.context.settings.max_upload_bytes, []
            for name, text in encoded:
                found.append(base64_images.decode_base64(text, name, left))
                left -= len(found[-1])
            return found

        return await in_a_thread(self.context, decode, self.deadline)

    async def file(self, parts: Sequence[str]) -> bytes | memoryview:
        """The picture of a form, in the first of ``parts`` that it has, or the raw body of any other type."""
        limit = self.context.settings.max_upload_bytes
        if body.media_type(self.request) != "multipart/form-data":
            raw = await body.read(self.request, limit)
            if not raw:
                raise EmptyBody("the body is empty; send the image's bytes")
            return raw
        found = await body.named_parts(self.request, limit)
        images = [part.data for part in found if part.name in parts]
        if len(images) > 1:
            raise TooManyImages("the form has several pictures; send one in each request")
        if not images or not images[0]:
            raise EmptyBody(f"the form has no picture in a part named {' or '.join(map(repr, parts))}")
        return images[0]

    async def logits_of(self, images: Sequence[bytes | memoryview]) -> NDArray[np.float32]:
        """The logits of every image, float32 ``[N, classes]``: all of them, or the first one's error."""
        self.received()
        logits = await self.logits([self.served.picture(image) for image in images])
        self.exchange.timings()
        return logits

    def best(self, logits: NDArray[np.float32], k: int | None = None) -> list[tuple[int, float]]:
        """The ``k`` best classes of logits ``[classes]``: place in the model's classes, and probability."""
        count = min(k or self.context.settings.top_k, len(self.model.classes))
        probabilities = activate(logits, self.model.activation)
        return [(int(index), float(probabilities[index])) for index in top(logits, count)]

    def probabilities(self, logits: NDArray[np.float32]) -> list[float]:
        """The probability of every class, in the model's order."""
        values: list[float] = activate(logits, self.model.activation).tolist()
        return values

    def classes(self, logits: NDArray[np.float32], k: int | None = None) -> list[dict[str, Any]]:
        """The best classes as `/predict` names them."""
        return [
            {
                "class_id": self.model.classes[index].class_id,
                "wnid": self.model.classes[index].wnid,
                "label": self.model.classes[index].label,
                "probability": probability,
            }
            for index, probability in self.best(logits, k)
        ]


def speak(request: Request, document: ErrorDocument) -> None:
    """Lets every error of ``request`` from here on have the form that ``document`` gives it."""
    request.scope["error_document"] = document


def asked(
    request: Request, document: ErrorDocument, name: str | None = None, version: str | None = None
) -> CompatRequest:
    """A request for a model with classes, whose errors have the form that ``document`` gives them. ``async with``
    admits it.

    Raises `NotFound` for a ``name`` or ``version`` that is not loaded, `NotReady`.
    """
    speak(request, document)
    work = CompatRequest.of(request, name)
    check_version(work.model, version)
    work.served.classifier()
    return work


def check_version(model: ModelCard, version: str | None) -> None:
    """Raises `NotFound` for a version that the protocols do not have here."""
    if version not in (None, VERSION, f"{VERSION}.0"):
        raise NotFound(f"{model.name} has no version {version[:50]!r}; it has {VERSION}")


def whole_number(value: JsonValue, name: str, most: int) -> int | None:
    """``value`` as a count of 1…``most``, None where it is null. Raises `InvalidParameter`."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InvalidParameter(f"{name} must be a whole number from 1 to {most}")
    return value
