"""Amazon SageMaker's contract for a model's container.

    docker run IMAGE serve   port 8080, or the one in SAGEMAKER_BIND_TO_PORT; weights in /opt/ml/model
    GET  /ping               200 and empty when ready, 503 before; within 2 s
    POST /invocations        image bytes of any type, or JSON as `POST /predict` takes it → the answer of `/predict`
                             within 60 s (request_timeout_ms is 30 s)
    SIGTERM                  and 30 s later SIGKILL (drain_timeout_ms is 25 s)

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api import predict
from service.api.context import context_of
from service.api.schemas import PredictResponse
from service.errors import Unavailable
from service.settings import Settings


def router(settings: Settings) -> APIRouter:
    """The routes of this contract."""
    routes = APIRouter(tags=["SageMaker"])
    if "torchserve" not in settings.listed_compat:  # its /ping has the same path, and answers a document
        routes.get("/ping")(ping)
    routes.post("/invocations", response_model=PredictResponse)(invocations)
    return routes


async def ping(request: Request) -> Response:
    """Returns 200 while new traffic should come here."""
    try:
        context_of(request).check_ready()
    except Unavailable:
        return Response(status_code=503)
    return Response()


async def invocations(request: Request, top_k: predict.TopK = None) -> Response:
    """Classifies one image as `POST /predict` does, whatever its declared type."""
    return await predict.predict_any_type(request, top_k)
