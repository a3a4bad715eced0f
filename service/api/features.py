"""`POST /features`: the backbone's output for one image."""

from __future__ import annotations

import io
import math
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.api import body
from service.api.admission import Admission
from service.api.compression import packed
from service.api.inference import PROBLEMS, ModelName, head, reply, upload
from service.api.schemas import FeaturesResponse
from service.shared.outputs import OutputKind

router = APIRouter(tags=["features"])

_NPY = "application/x-npy"
_TASKS = {"avg": OutputKind.FEATURES_AVG, "max": OutputKind.FEATURES_MAX, "none": OutputKind.FEATURES_MAP}

Pooling = Annotated[
    Literal["avg", "max", "none"] | None,
    Query(
        description="The pooling over positions: their mean (avg), their maximum (max), or none. Unless given it is "
        "the checkpoint's own, which is avg for most."
    ),
]


@router.post(
    "/features",
    response_model=FeaturesResponse,
    responses={**PROBLEMS, 200: {"content": {_NPY: {}}}},
    openapi_extra=upload("file"),
)
async def features(request: Request, pooling: Pooling = None, model: ModelName = None) -> Response:
    """Returns the output of the last convolutional block for one image.

    Its shape is `[channels]`, or `[channels, height, width]` without pooling. With `Accept: application/x-npy` the
    answer is the float32 array in NumPy's format. The image is batched with those of other requests.
    """
    admission = Admission.of(request, model)
    context, state, card = admission.context, admission.state, admission.served.card
    chosen = pooling or card.feature_pooling
    shape = card.feature_shape if chosen == "none" else card.feature_shape[:1]
    async with admission:
        image = await admission.receive(body.one_image(request, context.settings.max_upload_bytes))
        answer = await admission.infer(admission.served.picture(image), math.prod(shape), _TASKS[chosen])
    array = answer.result.reshape(shape)
    if _NPY in request.headers.get("accept", ""):
        response = Response(_npy(array), media_type=_NPY)
    else:
        document = {"pooling": chosen, "shape": list(shape), "features": array.tolist()}
        response = reply({**head(state, card), **document})
    response = await packed(request, context, response, admission.deadline)
    state.timings()
    return response


def _npy(array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
