"""The V1 data plane over REST, of TF-Serving and of KServe, which describe a model in different ways.

    GET  /v1/models                          KServe only: {"models": ["densenet121"]}
    GET  /v1/models/{model}[/versions/1]     TF-Serving: {"model_version_status": [{"version": "1", "state":
                                             "AVAILABLE", …}]} · KServe: {"name": "densenet121", "ready": true}
    GET  /v1/models/{model}/metadata         TF-Serving only: the signature
    POST /v1/models/{model}[/versions/1]:predict
         {"instances": [{"b64": "…"}, {"image_bytes": {"b64": "…"}}, …]}
         → {"predictions": [[0.001, …], …]}, or with v1_predictions=classes [[{"class_id", "wnid", "label",
         "probability"}, …], …]
    errors                                   {"error": "…"}

https://www.tensorflow.org/tfx/serving/api_rest, https://kserve.github.io/website (V1 inference protocol).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from pydantic import JsonValue
from starlette.responses import Response

from service.api.compat import flow
from service.api.context import context_of
from service.api.inference import reply
from service.errors import InvalidParameter, MissingFile, Unavailable
from service.settings import Settings

_MODEL = "/v1/models/{model_name}"
_VERSIONED = _MODEL + "/versions/{model_version}"


def tfserving_router(settings: Settings) -> APIRouter:
    """TF-Serving's routes."""
    routes = APIRouter(tags=["TF-Serving"])
    routes.get(_MODEL + "/metadata")(tfserving_metadata)
    routes.get(_VERSIONED + "/metadata", include_in_schema=False)(tfserving_metadata)
    _add_shared(routes, tfserving_status)
    return routes


def kserve_router(settings: Settings) -> APIRouter:
    """KServe's routes."""
    routes = APIRouter(tags=["KServe V1"])
    routes.get("/v1/models")(kserve_models)
    _add_shared(routes, kserve_status)
    return routes


def _add_shared(routes: APIRouter, status: Any) -> None:
    # These come first: a model's name may hold a colon, so that the other routes would match their paths as well.
    for path in (_MODEL, _VERSIONED):
        routes.post(path + ":predict", include_in_schema=path == _MODEL)(predict_instances)
    for path in (_MODEL, _VERSIONED):
        routes.get(path, include_in_schema=path == _MODEL)(status)


async def tfserving_status(
    request: Request, model_name: str, model_version: str | None = None
) -> dict[str, Any]:
    """Returns the state of the model."""
    flow.set_error_document(request, flow.only_error)
    context = context_of(request)
    flow.check_version(context.model(model_name), model_version)
    status = {"error_code": "OK", "error_message": ""}
    state = "AVAILABLE"
    try:
        context.check_ready()
    except Unavailable as error:
        state, status = "LOADING", {"error_code": "UNAVAILABLE", "error_message": str(error)}
    return {"model_version_status": [{"version": flow.VERSION, "state": state, "status": status}]}


async def tfserving_metadata(
    request: Request, model_name: str, model_version: str | None = None
) -> dict[str, Any]:
    """Returns the model's inputs and outputs as a signature of TF-Serving."""
    flow.set_error_document(request, flow.only_error)
    model = context_of(request).served(model_name).classifier()
    flow.check_version(model, model_version)

    def tensor(name: str, dtype: str, sizes: list[int]) -> dict[str, Any]:
        dimensions = [{"size": str(size), "name": ""} for size in sizes]
        return {
            "dtype": dtype,
            "tensor_shape": {"dim": dimensions, "unknown_rank": False},
            "name": f"{name}:0",
        }

    signature = {
        "inputs": {"image_bytes": tensor("image_bytes", "DT_STRING", [-1])},
        "outputs": {"probabilities": tensor("probabilities", "DT_DOUBLE", [-1, len(model.classes)])},
        "method_name": "tensorflow/serving/predict",
    }
    return {
        "model_spec": {"name": model.name, "signature_name": "", "version": flow.VERSION},
        "metadata": {"signature_def": {"signature_def": {"serving_default": signature}}},
    }


async def kserve_models(request: Request) -> dict[str, list[str]]:
    """Returns the names of the loaded models."""
    flow.set_error_document(request, flow.only_error)
    context = context_of(request)
    context.model()
    return {"models": [served.card.name for served in context.models.answering]}


async def kserve_status(
    request: Request, model_name: str, model_version: str | None = None
) -> dict[str, Any]:
    """Returns 200 while the model is ready."""
    flow.set_error_document(request, flow.only_error)
    context = context_of(request)
    flow.check_version(context.model(model_name), model_version)
    context.check_ready()
    return {"name": model_name, "ready": True}


async def predict_instances(request: Request, model_name: str, model_version: str | None = None) -> Response:
    """Classifies images given as base64. One unusable image fails the whole request."""
    async with flow.asked(request, flow.only_error, model_name, model_version) as work:
        images = await work.pictures(encoded_instances(await work.json()))
        logits = await work.logits_of(images)
    return reply({"predictions": predictions(work, logits)})


def encoded_instances(document: dict[str, JsonValue]) -> list[tuple[str, str]]:
    """The pairs (name, base64) of the images in ``instances``. Raises `MissingFile`, `InvalidParameter`."""
    instances = document.get("instances")
    if not isinstance(instances, list) or not instances:
        raise MissingFile('"instances" has to be a list with a picture: {"instances": [{"b64": "BASE64"}]}')
    return [(f"instances[{place}]", _encoded(item, place)) for place, item in enumerate(instances)]


def _encoded(item: JsonValue, place: int) -> str:
    """The base64 in ``{"b64": …}``, in the only member of an object, or in a plain string."""
    for _ in range(2):
        if isinstance(item, dict) and len(item) == 1:
            (item,) = item.values()
    if not isinstance(item, str):
        raise InvalidParameter(
            f'instances[{place}] has to be {{"b64": "BASE64"}} or {{"image_bytes": {{"b64": "BASE64"}}}}'
        )
    return item


def predictions(work: flow.CompatRequest, logits: NDArray[np.float32], k: int | None = None) -> list[Any]:
    """One prediction for each row of ``logits``, in the form of the setting ``v1_predictions``."""
    if work.context.settings.v1_predictions == "classes" or k is not None:
        return [work.classes(row, k) for row in logits]
    return [work.probabilities(row) for row in logits]
