"""`POST /predict` and `POST /predict/batch`: photos in, labels out."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.api import base64_images, body
from service.api.context import Context, context_of
from service.api.errors import problem, status_of
from service.api.exchange import Exchange, exchange_of, hang_up_cancels
from service.api.inference import PROBLEMS, ModelName, arrive, each, head, in_a_thread, look, reply, upload
from service.api.ranking import Ranking
from service.api.schemas import BatchResponse, PredictResponse
from service.api.served import Served
from service.engine.client import Slot
from service.errors import EmptyBody, NotANumber, RequestError

router = APIRouter(tags=["predict"])

TopK = Annotated[int | None, Query(ge=1, description="How many classes; the setting top_k unless given.")]
Activation = Annotated[
    Literal["softmax", "none"], Query(description="none answers with logits in place of probabilities.")
]


@router.post(
    "/predict",
    response_model=PredictResponse,
    response_model_exclude_none=True,
    responses=PROBLEMS,
    openapi_extra=upload("file", json=base64_images.ImageDocument),
)
async def predict(
    request: Request, top_k: TopK = None, activation: Activation = "softmax", model: ModelName = None
) -> Response:
    """One image, as a form's part `file`, as the raw body, or as base64 in JSON, to its best classes."""
    limit = context_of(request).settings.max_upload_bytes
    return await _predict(request, top_k, activation, model, lambda: body.one_image(request, limit))


# What `curl -T` sends. One operation in the schema is enough.
router.put("/predict", include_in_schema=False)(predict)


async def predict_any_type(request: Request, top_k: int | None) -> Response:
    """`predict`, but that a raw body may be of any declared type: the bytes decide."""
    limit = context_of(request).settings.max_upload_bytes
    return await _predict(
        request, top_k, "softmax", None, lambda: body.one_image(request, limit, any_type=True)
    )


async def _predict(
    request: Request,
    top_k: int | None,
    activation: str,
    name: str | None,
    receive: Callable[[], Awaitable[bytes | memoryview]],
) -> Response:
    context, exchange = context_of(request), exchange_of(request)
    deadline = exchange.deadline(request, context.settings.request_timeout_ms)
    served, ranking = _ask(context, exchange, top_k, activation, name)
    model = served.card
    image: bytes | memoryview
    if base64_images.is_json(request):
        image, ranking = await _from_json(request, served, ranking, deadline)
    else:
        image = await receive()
    exchange.stages["receive"] = time.monotonic() - exchange.started
    async with hang_up_cancels(request):
        with await served.client.admit(deadline, exchange.bulk) as slot:
            seen = await look(context, slot, served.picture(image), deadline, len(model.classes))
    exchange.note(seen.stages, seen.answer)
    predictions = ranking.predictions(seen.answer.result, model.classes, model.activation)
    return reply({**head(exchange, model), "predictions": predictions, "timings_ms": exchange.timings()})


@router.post(
    "/predict/batch",
    response_model=BatchResponse,
    response_model_exclude_none=True,
    responses=PROBLEMS,
    openapi_extra=upload("files", several=True),
)
async def predict_batch(
    request: Request, top_k: TopK = None, activation: Activation = "softmax", model: ModelName = None
) -> Response:
    """Several images, as a form's parts `files`, to one result each, in order.

    An image that cannot be used, or that the model has no numbers for, gets its own error and changes nothing
    for the others.
    """
    context, exchange = context_of(request), exchange_of(request)
    settings = context.settings
    deadline = exchange.deadline(request, settings.request_timeout_ms)
    served, ranking = _ask(context, exchange, top_k, activation, model)
    card = served.card
    parts = await body.several_images(request, settings.max_upload_bytes, settings.max_images_per_request)
    exchange.stages["receive"] = time.monotonic() - exchange.started

    async def result(part: body.Part, slot: Slot) -> dict[str, Any]:
        try:
            seen = await look(context, slot, served.picture(part.data), deadline, len(card.classes))
        except (RequestError, NotANumber) as error:
            document = problem(error, exchange.id)
            return {"filename": part.filename, "status": status_of(error), "error": document}
        exchange.note(seen.stages, seen.answer)
        predictions = ranking.predictions(seen.answer.result, card.classes, card.activation)
        return {"filename": part.filename, "status": 200, "predictions": predictions}

    async with hang_up_cancels(request):
        results = await each(served, parts, deadline, result, bulk=exchange.bulk)
    exchange.timings()
    return reply({**head(exchange, card), "results": results})


async def _from_json(
    request: Request, served: Served, ranking: Ranking, deadline: float
) -> tuple[bytes, Ranking]:
    """The picture in a JSON body, and the ranking that the body asks for in place of the query's."""
    context = context_of(request)
    limit = context.settings.max_upload_bytes
    raw = await body.read(request, base64_images.json_limit(limit))
    if not raw:
        raise EmptyBody('the body is empty; send {"image": "BASE64"}')

    def parse() -> tuple[bytes, base64_images.ImageDocument]:
        document = base64_images.parse_image_document(raw)
        return base64_images.decode_base64(document.image, "image", limit), document

    image, document = await in_a_thread(context, parse, deadline)
    return image, ranking.changed(served.card.classes, document.top_k, document.activation)


def _ask(
    context: Context, exchange: Exchange, top_k: int | None, activation: str, name: str | None
) -> tuple[Served, Ranking]:
    """What is asked for, refused before the body is read if nobody could serve it."""
    served = exchange.ask(context, name)
    ranking = Ranking.of(served.classifier().classes, top_k, context.settings.top_k, activation)
    arrive(served, exchange)
    return served, ranking
