"""What every route that shows an image to the model has in common."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.responses import Response

from service.api.context import Context
from service.api.exchange import Exchange
from service.api.schemas import Problem
from service.card import ModelCard
from service.engine.client import Answer, Slot
from service.errors import NotANumber
from service.task import Task

#: For the schema: what such a route may answer beside 200.
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "content": {"application/problem+json": {}}}
    for status in (400, 413, 415, 422, 429, 500, 503, 504)
}

#: json.dumps makes an encoder for every call that wants other than ASCII.
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def upload(part: str, *, several: bool = False) -> dict[str, Any]:
    """The request body for the schema: it is read by hand, so that limits hold while it arrives."""
    image = {"type": "string", "format": "binary"}
    field = {"type": "array", "items": image} if several else image
    form = {"schema": {"type": "object", "properties": {part: field}, "required": [part]}}
    content: dict[str, Any] = {"multipart/form-data": form}
    if not several:
        content["image/*"] = {"schema": image}
    return {"requestBody": {"required": True, "content": content}}


def arrive(context: Context, deadline: float) -> None:
    """Counts an image as offered, and refuses it at once when there is no room, or not in time.

    To be called before its body is read.
    """
    context.client.offer()
    context.client.check_room(deadline)


@dataclass(frozen=True)
class Seen:
    """What became of one image. ``stages`` are durations in seconds."""

    answer: Answer
    stages: dict[str, float]


async def look(
    context: Context,
    slot: Slot,
    image: bytes | memoryview,
    deadline: float,
    length: int,
    task: Task = Task.CLASSIFY,
) -> Seen:
    """Decodes ``image`` into ``slot`` and waits for ``length`` float32 of what ``task`` wants of the model.

    Raises `NotANumber`, beside what the slot's methods raise.
    """
    began = time.monotonic()
    await slot.fill(context.decoders, context.writer(image), deadline)
    decode = time.monotonic() - began
    answer = await slot.answer(deadline, length, task)
    if not np.isfinite(answer.result).all():
        context.metrics.nan_outputs.inc()
        raise NotANumber
    stages = {"decode": decode, "queue": answer.queue, "inference": answer.inference}
    for stage, seconds in stages.items():
        context.metrics.stage_duration.labels(stage).observe(seconds)
    return Seen(answer, stages)


def head(exchange: Exchange, model: ModelCard) -> dict[str, Any]:
    """How every answer begins."""
    return {"request_id": exchange.id, "model": model.name, "weights": model.weights}


def reply(document: dict[str, Any]) -> Response:
    """``document`` as JSON, without the cost of a schema's second look at it."""
    return Response(_encode(document), media_type="application/json")
