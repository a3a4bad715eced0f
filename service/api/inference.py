"""What the routes that show images to a model share beside `service.api.admission`: schema, threads, answers."""

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
from service.api.exchange import Exchange
from service.api.schemas import Problem
from service.errors import DeadlineExceeded
from service.observability.card import ModelCard

T = TypeVar("T")

#: A query parameter of every route that asks a model.
ModelName = Annotated[
    str | None, Query(description="Which of several models, by its name; the default one unless given.")
]

#: For the schema: what such a route may answer beside 200.
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "content": {"application/problem+json": {}}}
    for status in (400, 404, 413, 415, 422, 429, 500, 503, 504)
}


def upload(part: str, *, several: bool = False, json: type[BaseModel] | None = None) -> dict[str, Any]:
    """The request body for the schema: it is read by hand, so that limits hold while it arrives.

    ``json`` is the model of a JSON body, where one is taken as well.
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
    """``work()`` in one of the decoding threads. Raises what it raises, or `DeadlineExceeded`."""
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
            # The border of a thread: it is raised again where the work is awaited.
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


def head(exchange: Exchange, model: ModelCard) -> dict[str, Any]:
    """How every answer begins."""
    return {"request_id": exchange.id, "model": model.name, "weights": model.weights}


def reply(document: dict[str, Any] | list[Any]) -> Response:
    """``document`` as JSON, without the cost of a schema's second look at it: by pydantic's own serializer, which
    takes a fifth of the standard library's time."""
    return Response(to_json(document, inf_nan_mode="null"), media_type="application/json")
