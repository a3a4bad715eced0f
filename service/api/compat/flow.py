"""Shared parts of the contracts: admission, the images in the body, logits, and errors in a contract's form."""

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
from service.api.inference import in_a_thread
from service.api.request_state import RequestState
from service.errors import (
    EmptyBody,
    InvalidParameter,
    MalformedRequest,
    NotFound,
    ServiceError,
    TooManyImages,
)
from service.observability.card import ModelCard
from service.shared.ranking import Ranking, activate, top

#: The only version of every model.
VERSION = "1"


def only_error(error: ServiceError, status: int) -> dict[str, Any]:
    """The error document of TF-Serving, KServe, Vertex AI and Hugging Face: ``{"error": "…"}``."""
    return {"error": str(error)}


class CompatRequest(Admission):
    """A request under another server's contract: reads its body and forms its answer."""

    def __init__(self, context: Context, state: RequestState, name: str | None, request: Request) -> None:
        super().__init__(context, state, name, request)
        self.request = request

    @property
    def model(self) -> ModelCard:
        """The card of the request's model."""
        return self.served.card

    async def json(self) -> dict[str, JsonValue]:
        """Reads the body, a JSON object. Raises `RequestError` for a body that is none or too large."""
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
        """Decodes pairs (name, base64). ``max_upload_bytes`` limits all of them together."""
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
        """Reads the image: the only form part whose name is in ``parts``, or the raw body of any other type."""
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
        """The logits of N images, float32 ``[N, classes]``. Raises the first error of any image."""
        self.received()
        logits = await self.logits([self.served.picture(image) for image in images])
        self.state.timings()
        return logits

    def best(self, logits: NDArray[np.float32], k: int | None = None) -> list[tuple[int, float]]:
        """The ``k`` best classes of logits ``[classes]`` (None: the setting), as (index, probability)."""
        count = min(k or self.context.settings.top_k, len(self.model.classes))
        probabilities = activate(logits, self.model.activation)
        return [(int(index), float(probabilities[index])) for index in top(logits, count)]

    def probabilities(self, logits: NDArray[np.float32]) -> list[float]:
        """The probability of every class, in the model's order."""
        values: list[float] = activate(logits, self.model.activation).tolist()
        return values

    def classes(self, logits: NDArray[np.float32], k: int | None = None) -> list[dict[str, Any]]:
        """The best classes in the form of `/predict`."""
        ranking = Ranking(min(k or self.context.settings.top_k, len(self.model.classes)))
        return ranking.predictions(logits, self.model.classes, self.model.activation)


def set_error_document(request: Request, document: ErrorDocument) -> None:
    """Gives every later error of ``request`` the form of ``document``."""
    request.scope["error_document"] = document


def asked(
    request: Request, document: ErrorDocument, name: str | None = None, version: str | None = None
) -> CompatRequest:
    """A request to a model with classes, whose errors have the form of ``document``. ``async with`` admits it.

    Raises `NotFound` for a ``name`` or ``version`` that is not loaded, `NotReady`.
    """
    set_error_document(request, document)
    work = CompatRequest.of(request, name)
    check_version(work.model, version)
    work.served.classifier()
    return work


def check_version(model: ModelCard, version: str | None) -> None:
    """Raises `NotFound` for any version but `VERSION`; None means that one."""
    if version not in (None, VERSION, f"{VERSION}.0"):
        raise NotFound(f"{model.name} has no version {version[:50]!r}; it has {VERSION}")


def whole_number(value: JsonValue, name: str, most: int) -> int | None:
    """``value`` as a whole number of 1…``most``; None for null. Raises `InvalidParameter`."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InvalidParameter(f"{name} must be a whole number from 1 to {most}")
    return value
