"""What every route that shows an image to the model has in common."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast

import numpy as np
from fastapi import Query
from numpy.typing import NDArray
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.responses import Response

from service.api.context import Context
from service.api.exchange import Exchange
from service.api.ranking import finite
from service.api.schemas import Problem
from service.api.served import Served
from service.card import ModelCard
from service.engine.client import Answer, Slot
from service.engine.writing import Work
from service.errors import DeadlineExceeded, NotANumber, RequestError
from service.task import Task, Wanted

T = TypeVar("T")
R = TypeVar("R")

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


def arrive(served: Served, exchange: Exchange) -> None:
    """Counts an image as offered to a model, and refuses it at once when there is no room, or not in time.

    To be called before its body is read, after `Exchange.deadline`.
    """
    if not exchange.bulk:
        served.client.offer()
    served.client.check_room(exchange.due, exchange.bulk)


@dataclass(frozen=True)
class Seen:
    """What became of one image. ``stages`` are durations in seconds."""

    answer: Answer
    stages: dict[str, float]


async def look(
    context: Context,
    slot: Slot,
    work: Work,
    deadline: float,
    length: int,
    wanted: Wanted = Task.CLASSIFY,
) -> Seen:
    """Lets ``work`` fill ``slot`` and waits for ``length`` float32 of what is ``wanted`` of the model.

    Raises `NotANumber`, beside what the slot's methods raise.
    """
    began = time.monotonic()
    await slot.fill(context.decoders, work, deadline)
    decode = time.monotonic() - began
    answer = await slot.answer(deadline, length, wanted)
    try:
        finite(answer.result)
    except NotANumber:
        context.metrics.nan_outputs.inc()
        raise
    stages = {"decode": decode, "queue": answer.queue, "inference": answer.inference}
    for stage, seconds in stages.items():
        context.metrics.stage_duration.labels(stage).observe(seconds)
    if context.shadow is not None and wanted is Task.CLASSIFY:
        context.shadow.look_on(slot, answer)
    return Seen(answer, stages)


async def each(
    served: Served,
    items: Sequence[T],
    deadline: float,
    work: Callable[[T, Slot], Awaitable[R]],
    *,
    bulk: bool = False,
) -> list[R]:
    """``work`` of every item, each in a slot of its own, in order.

    The first slot is admission: without one, or none in time, this raises `Overloaded` before anything was done.
    The others are taken in turn. The first error cancels the rest and is raised itself, not as a group.
    """
    if not bulk:
        served.client.offer(len(items) - 1)

    async def one(item: T, slot: Slot | None) -> R:
        with slot or await served.client.take_in_turn(deadline, bulk) as place:
            return await work(item, place)

    # The first slot is held here as well, in case the task that should use it is cancelled before it begins.
    with await served.client.admit(deadline, bulk) as first:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(one(item, None if place else first)) for place, item in enumerate(items)
                ]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def logits_of_all(
    context: Context, exchange: Exchange, writes: Sequence[Work], deadline: float
) -> NDArray[np.float32]:
    """The logits of every image that ``writes`` put into slots, float32 ``[N, classes]``, in order.

    All or nothing: the first `RequestError` is raised, with the image's number if there are several.
    """

    served = exchange.ask(context)
    classes = len(served.card.classes)

    async def one(numbered: tuple[int, Work], slot: Slot) -> NDArray[np.float32]:
        number, write = numbered
        try:
            seen = await look(context, slot, write, deadline, classes)
        except RequestError as error:
            raise type(error)(f"image {number}: {error}" if len(writes) > 1 else str(error)) from None
        exchange.note(seen.stages, seen.answer)
        return seen.answer.result

    if len(writes) == 1:  # without a group of tasks: most requests have one image
        with await served.client.admit(deadline, exchange.bulk) as slot:
            return (await one((0, writes[0]), slot))[np.newaxis]
    return np.stack(await each(served, list(enumerate(writes)), deadline, one, bulk=exchange.bulk))


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
