"""`POST /predict` and `POST /predict/batch`: photos in, labels out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.api import base64_images, body
from service.api.admission import Admission
from service.api.context import context_of
from service.api.errors import problem, status_of
from service.api.inference import PROBLEMS, ModelName, head, in_a_thread, reply, upload
from service.api.schemas import BatchResponse, PredictResponse
from service.engine.client import Slot
from service.errors import EmptyBody, NotANumber, RequestError
from service.observability.card import ModelCard
from service.shared.ranking import Ranking

router = APIRouter(tags=["predict"])

TopK = Annotated[
    int | None, Query(ge=1, description="The number of classes; the setting top_k unless given.")
]
Activation = Annotated[
    Literal["softmax", "none"], Query(description="none gives logits in place of probabilities.")
]


@router.post(
    "/predict",
    response_model=PredictResponse,
    responses=PROBLEMS,
    openapi_extra=upload("file", json=base64_images.ImageDocument),
)
async def predict(
    request: Request, top_k: TopK = None, activation: Activation = "softmax", model: ModelName = None
) -> Response:
    """Classifies one image, given as a form's part `file`, as the raw body, or as base64 in JSON."""
    limit = context_of(request).settings.max_upload_bytes
    return await _predict(request, top_k, activation, model, lambda: body.one_image(request, limit))


# What `curl -T` sends. One operation in the schema is enough.
router.put("/predict", include_in_schema=False)(predict)


async def predict_any_type(request: Request, top_k: int | None) -> Response:
    """Does what `predict` does, but accepts a raw body of any Content-Type."""
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
    admission = Admission.of(request, name)
    model, ranking = _ask(admission, top_k, activation)
    async with admission:
        image: bytes | memoryview
        if base64_images.is_json(request):
            image, ranking = await admission.receive(_from_json(request, admission, ranking))
        else:
            image = await admission.receive(receive())
        answer = await admission.infer(admission.served.picture(image), len(model.classes))
    predictions = ranking.predictions(answer.result, model.classes, model.activation)
    state = admission.state
    return reply({**head(state, model), "predictions": predictions, "timings_ms": state.timings()})


@router.post(
    "/predict/batch",
    response_model=BatchResponse,
    responses=PROBLEMS,
    openapi_extra=upload("files", several=True),
)
async def predict_batch(
    request: Request, top_k: TopK = None, activation: Activation = "softmax", model: ModelName = None
) -> Response:
    """Classifies several images, given as a form's parts `files`, and returns one result for each, in order.

    An image that cannot be decoded, or for which the model's output is not finite, gets an error of its own. The other
    images are not affected.
    """
    admission = Admission.of(request, model)
    card, ranking = _ask(admission, top_k, activation)
    settings, state = admission.context.settings, admission.state

    async def result(part: body.FormPart, slot: Slot) -> dict[str, Any]:
        try:
            answer = await admission.infer_in(slot, admission.served.picture(part.data), len(card.classes))
        except (RequestError, NotANumber) as error:
            document = problem(error, state.id)
            return {"filename": part.filename, "status": status_of(error), "error": document}
        predictions = ranking.predictions(answer.result, card.classes, card.activation)
        return {"filename": part.filename, "status": 200, "predictions": predictions}

    async with admission:
        parts = await admission.receive(
            body.several_images(request, settings.max_upload_bytes, settings.max_images_per_request)
        )
        results = await admission.infer_each(parts, result)
    state.timings()
    return reply({**head(state, card), "results": results})


async def _from_json(request: Request, admission: Admission, ranking: Ranking) -> tuple[bytes, Ranking]:
    """Reads the image in a JSON body, and the ranking that the body asks for in place of the query's."""
    limit = admission.context.settings.max_upload_bytes
    raw = await body.read(request, base64_images.json_limit(limit))
    if not raw:
        raise EmptyBody('the body is empty; send {"image": "BASE64"}')

    def parse() -> tuple[bytes, base64_images.ImageDocument]:
        document = base64_images.parse_image_document(raw)
        return base64_images.decode_base64(document.image, "image", limit), document

    image, document = await in_a_thread(admission.context, parse, admission.deadline)
    return image, ranking.changed(admission.served.card.classes, document.top_k, document.activation)


def _ask(admission: Admission, top_k: int | None, activation: str) -> tuple[ModelCard, Ranking]:
    """The model's card and the ranking. Raises `NotFound` for a model without classes, `InvalidParameter`."""
    model = admission.served.classifier()
    return model, Ranking.of(model.classes, top_k, admission.context.settings.top_k, activation)
