"""The image classification task of Hugging Face's Inference Endpoints.

    POST /         {"inputs": "BASE64", "parameters": {"top_k": 5}}, or a picture's bytes → [{"label", "score"}, …]
    GET  /health   200 when ready, 503 before
    errors         {"error": "…"}

The platform mounts the repository at /repository: IMAGENET_WEIGHTS=/repository.
Source: Hugging Face's documentation of the task image classification, and of custom containers.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api import base64_images
from service.api.compat import flow
from service.api.compat.vertex import vertex_health
from service.api.inference import reply
from service.errors import InvalidParameter, MissingFile
from service.settings import Settings


def router(settings: Settings) -> APIRouter:
    """The routes of this contract."""
    routes = APIRouter(tags=["Hugging Face"])
    routes.post("/")(classify_inputs)
    if not ("vertex" in settings.listed_compat and settings.vertex_health_route == "/health"):
        routes.get("/health")(vertex_health)
    return routes


async def classify_inputs(request: Request) -> Response:
    """Classifies one image."""
    async with flow.asked(request, flow.only_error) as work:
        images, top_k = await _asked_for(work)
        logits = await work.logits_of(images)
    best = work.best(logits[0], top_k)
    return reply([{"label": work.model.classes[index].label, "score": score} for index, score in best])


async def _asked_for(work: flow.CompatRequest) -> tuple[list[bytes | memoryview], int | None]:
    """The image in the body, and the number of classes of the answer (None: the setting ``top_k``)."""
    if not base64_images.is_json(work.request):
        return [await work.file(("file", "data"))], None
    document = await work.json()
    inputs, parameters = document.get("inputs"), document.get("parameters") or {}
    if not isinstance(inputs, str):
        raise MissingFile('"inputs" has to be the picture as base64')
    if not isinstance(parameters, dict):
        raise InvalidParameter("parameters has to be an object")
    top_k = flow.whole_number(parameters.get("top_k"), "parameters.top_k", len(work.model.classes))
    return [*await work.pictures([("inputs", inputs)])], top_k
