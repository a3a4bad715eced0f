"""TorchServe's inference API, as its documents and its quick start use it.

    GET  /ping                             200 {"status": "Healthy"}, or 503 {"status": "Unhealthy"}
    POST /predictions/{model}[/{version}]  (also PUT, as `curl -T` sends it) raw bytes of any type, the form part
                                           `data` or `body`, or JSON {"data": "BASE64"}
                                           → {"label": probability, …}, the best first
    POST /explanations/{model}[/{version}] the same in → the map's rows, in units of the class's logit
    errors                                 {"code": 404, "type": "ModelNotFoundException", "message": "…"}

https://pytorch.org/serve/inference_api.html and TorchServe's image_classifier handler.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import JsonValue
from starlette.responses import Response

from service.api import base64_images
from service.api.compat import flow
from service.api.context import context_of
from service.api.explain import explain_image
from service.api.inference import reply
from service.errors import (
    InvalidParameter,
    NotFound,
    Overloaded,
    RequestError,
    ServiceError,
    Unavailable,
)
from service.observability.card import ModelCard
from service.settings import Settings

_PARTS = ("data", "body")
#: The names of TorchServe's exceptions by class of error; the first class that fits counts.
_TYPES: tuple[tuple[type[ServiceError], str], ...] = (
    (NotFound, "ModelNotFoundException"),
    (RequestError, "BadRequestException"),
    (Overloaded, "ServiceUnavailableException"),
    (Unavailable, "ServiceUnavailableException"),
    (ServiceError, "InternalServerException"),
)


def router(settings: Settings) -> APIRouter:
    """The routes of this contract."""
    routes = APIRouter(tags=["TorchServe"])
    routes.get("/ping")(ping)
    for room in ("predictions", "explanations"):
        work = predictions if room == "predictions" else explanations
        for path in (f"/{room}/{{model_name}}", f"/{room}/{{model_name}}/{{model_version}}"):
            shown = "version" not in path
            routes.post(path, include_in_schema=shown)(work)
            routes.put(path, include_in_schema=False)(work)
    return routes


async def ping(request: Request) -> Response:
    """Answers TorchServe's health check."""
    try:
        context_of(request).check_ready()
    except Unavailable:
        return Response('{"status": "Unhealthy"}', 503, media_type="application/json")
    return Response('{"status": "Healthy"}', media_type="application/json")


async def predictions(request: Request, model_name: str, model_version: str | None = None) -> Response:
    """Classifies one image, to the probabilities of its best classes by label."""
    async with flow.asked(request, _error, model_name, model_version) as work:
        logits = await work.logits_of([await _picture(work)])
    return reply(by_label(work.model, work.best(logits[0])))


async def explanations(request: Request, model_name: str, model_version: str | None = None) -> Response:
    """Explains the best class of one image by a map."""
    work = flow.asked(request, _error, model_name, model_version)
    explained = await explain_image(work, None, lambda: _picture(work))
    return reply(explained.grid.tolist())


def by_label(model: ModelCard, best: list[tuple[int, float]]) -> dict[str, float]:
    """The probabilities by label. Of two classes with the same label, the second gets its wnid or class_id added."""
    found: dict[str, float] = {}
    for index, probability in best:
        entry = model.classes[index]
        name = entry.label if entry.label not in found else f"{entry.label} ({entry.wnid or entry.class_id})"
        found[name] = probability
    return found


async def _picture(work: flow.CompatRequest) -> bytes | memoryview:
    if not base64_images.is_json(work.request):
        return await work.file(_PARTS)
    document = await work.json()
    given = [(name, document[name]) for name in _PARTS if name in document]
    if len(given) != 1:
        raise InvalidParameter('the JSON has to be {"data": "BASE64"}')
    (image,) = await work.pictures([_text(*given[0])])
    return image


def _text(name: str, value: JsonValue) -> tuple[str, str]:
    if not isinstance(value, str):
        raise InvalidParameter(f"{name} has to be the picture as base64")
    return name, value


def _error(error: ServiceError, status: int) -> dict[str, Any]:
    kind = next(name for family, name in _TYPES if isinstance(error, family))
    return {"code": status, "type": kind, "message": str(error)}
