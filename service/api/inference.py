"""Shared parts of the inference routes beside `service.api.admission`: schema, threads, answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, cast

from fastapi import Query
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.responses import Response

from service.api.context import Context
from service.api.request_state import RequestState
from service.api.schemas import problems
from service.errors import DeadlineExceeded
from service.observability.card import ModelCard

T = TypeVar("T")

#: The query parameter of every inference route that chooses the model.
ModelName = Annotated[
    str | None, Query(description="The name of one of several models; the default one unless given.")
]

#: The error responses of an inference route, for the schema.
PROBLEMS = problems(400, 404, 413, 415, 422, 429, 500, 503, 504)


def upload(part: str, *, several: bool = False, json: type[BaseModel] | None = None) -> dict[str, Any]:
    """The schema of the request body, which FastAPI does not know, since `service.api.body` reads it within limits.

    ``part`` is the form's part with the image. ``json`` is the model of a JSON body, if the route takes one.
    """
    image = {"type": "string", "format": "binary"}
    field = {"type": "array", "items": image} if several else image
    form = {"schema": {"type": "object", "properties": {part: field}, "required": [part]}}
    content: dict[str, Any] = {"multipart/form-data": form}
    if not several:
        content["image/*"] = {"schema": image}
    if json is not None:
        content["application/json"] = {"schema": json.model_json_schema()}
    return {"requestBody": {"required": True, "content": content}}


async def in_a_thread(context: Context, work: Callable[[], T], deadline: float) -> T:
    """Runs ``work`` in a decoding thread and returns its result. Raises what it raises, or `DeadlineExceeded`."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast(T, result))

    def job() -> None:
        try:
            result, error = work(), None
        except Exception as raised:
            # The border of a thread: the error is raised again where the work is awaited.
            result, error = None, raised
        loop.call_soon_threadsafe(settle, result, error)

    context.decoders.submit(job)
    try:
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            return await done
    except TimeoutError:
        raise DeadlineExceeded(
            "the deadline passed before the answer was there (request_timeout_ms)"
        ) from None


def head(state: RequestState, model: ModelCard) -> dict[str, Any]:
    """The first fields of every answer."""
    return {"request_id": state.id, "model": model.name, "weights": model.weights}


def reply(document: dict[str, Any] | list[Any]) -> Response:
    """A JSON response. FastAPI's validation of the answer is skipped, and pydantic's serializer takes a fifth of the
    time of the standard library's."""
    return Response(to_json(document, inf_nan_mode="null"), media_type="application/json")
