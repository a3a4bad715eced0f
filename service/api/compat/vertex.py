"""Google Vertex AI's contract for a custom container.

    AIP_HTTP_PORT            the port
    GET  AIP_HEALTH_ROUTE    200 when ready, 503 before
    POST AIP_PREDICT_ROUTE   {"instances": [{"b64": "…"}, …], "parameters": {"top_k": 5}} → {"predictions": […]};
                             any other body (rawPredict) is one picture's bytes
    AIP_STORAGE_URI          a mounted or local path; gs:// is not fetched
    errors                   {"error": "…"}

https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import JsonValue
from starlette.responses import Response

from service.api import base64_images
from service.api.compat import flow, v1
from service.api.context import context_of
from service.api.inference import reply
from service.errors import InvalidParameter
from service.settings import Settings


def router(settings: Settings) -> APIRouter:
    """The routes of this contract, at the paths that the platform chooses."""
    routes = APIRouter(tags=["Vertex AI"])
    routes.get(settings.vertex_health_route)(vertex_health)
    routes.post(settings.vertex_predict_route)(vertex_predict)
    return routes


async def vertex_health(request: Request) -> dict[str, str]:
    """Returns 200 while new traffic should come here."""
    flow.set_error_document(request, flow.only_error)
    context_of(request).check_ready()
    return {"status": "ready"}


async def vertex_predict(request: Request) -> Response:
    """Classifies instances. `parameters.top_k` asks for the best classes in place of all probabilities."""
    top_k = None
    async with flow.asked(request, flow.only_error) as work:
        images: list[bytes] | list[bytes | memoryview]
        if base64_images.is_json(request):
            document = await work.json()
            top_k = _top_k(document.get("parameters"), len(work.model.classes))
            images = await work.pictures(v1.encoded_instances(document))
        else:
            images = [await work.file(("file", "data"))]
        logits = await work.logits_of(images)
    return reply({"predictions": v1.predictions(work, logits, top_k)})


def _top_k(parameters: JsonValue, classes: int) -> int | None:
    if parameters is None:
        return None
    if not isinstance(parameters, dict):
        raise InvalidParameter("parameters has to be an object")
    return flow.whole_number(parameters.get("top_k"), "parameters.top_k", classes)
