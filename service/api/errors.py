"""The table from errors to HTTP statuses, and the problem documents (RFC 9457)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from service import errors
from service.api.context import context_of
from service.options import wording

_STATUS: dict[type[errors.ServiceError], int] = {
    errors.MalformedRequest: 400,
    errors.MissingFile: 400,
    errors.EmptyBody: 400,
    errors.MalformedMultipart: 400,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.RequestTimeout: 408,
    errors.Conflict: 409,
    errors.PayloadTooLarge: 413,
    errors.ImageTooLarge: 413,
    errors.TooManyImages: 413,
    errors.UnsupportedMediaType: 415,
    errors.InvalidImage: 422,
    errors.MisdirectedRequest: 421,
    errors.InvalidParameter: 422,
    errors.LoadFailed: 422,
    errors.HeadersTooLarge: 431,
    errors.Overloaded: 429,
    errors.Unimplemented: 501,
    errors.VersionUnknown: 505,
    errors.InternalError: 500,
    errors.NotANumber: 500,
    errors.IntakeFull: 503,
    errors.NotReady: 503,
    errors.Draining: 503,
    errors.EngineFailed: 503,
    errors.DeadlineExceeded: 504,
    errors.NotEnoughMemory: 507,
}

#: Maps an error and its status to the error document of another server's contract.
ErrorDocument = Callable[[errors.ServiceError, int], dict[str, Any]]

#: Paths of the Open Inference Protocol, whose errors have their own form.
_OPEN_INFERENCE = re.compile(r"/v2(/|$)")
#: Statuses of requests that are refused before any work; counted by reason.
_REJECTIONS = frozenset({401, 413, 415, 429, 503})
#: Characters of a wrong value that the error message repeats.
_SHOWN = 40
#: Retry-After in seconds while an engine is loaded or replaced.
_RETRY_UNAVAILABLE = 1


def status_of(error: errors.ServiceError) -> int:
    """The HTTP status of ``error``."""
    return _STATUS[type(error)]


def problem(error: errors.ServiceError, request_id: str) -> dict[str, Any]:
    """The problem document of ``error``."""
    return {
        "type": f"urn:imagenet-serve:problem:{error.code}",
        "title": error.code.replace("_", " ").capitalize(),
        "status": status_of(error),
        "detail": str(error),
        "code": error.code,
        "request_id": request_id,
    }


def respond(request: Request, error: errors.ServiceError) -> Response:
    """Counts ``error`` and returns the response for it."""
    status = status_of(error)
    metrics = context_of(request).metrics
    if status in _REJECTIONS and not request.scope.get("probe"):
        metrics.rejected.labels(error.code).inc()
    if isinstance(error, errors.DeadlineExceeded):
        metrics.expired.inc()
    headers = headers_of(error)
    if _OPEN_INFERENCE.match(request.scope["path"]):
        return Response(json.dumps({"error": str(error)}), status, headers, media_type="application/json")
    shape: ErrorDocument | None = request.scope.get("error_document")
    if shape is not None:
        return Response(json.dumps(shape(error, status)), status, headers, media_type="application/json")
    document = json.dumps(problem(error, request.scope["request_state"].id))
    return Response(document, status, headers, media_type="application/problem+json")


def headers_of(error: errors.ServiceError) -> dict[str, str]:
    """The headers of the response to ``error``."""
    status = status_of(error)
    if isinstance(error, errors.Overloaded):
        return {"Retry-After": str(math.ceil(error.retry_after))}
    if status == 503:
        return {"Retry-After": str(_RETRY_UNAVAILABLE)}
    if status == 401:
        return {"WWW-Authenticate": "Bearer"}
    return {}


def defect() -> errors.InternalError:
    """The error that a client gets for an unexpected exception, whose details only the log has."""
    return errors.InternalError("something went wrong inside the service; its log has the reason")


def _unfit(request: Request, item: Any) -> str:
    """The message for a wrong query parameter, which names the allowed values."""
    name, value = str(item["loc"][-1]), str(item["input"])
    parameters = request.scope["route"].dependant.query_params
    info = next((one.field_info for one in parameters if one.alias == name), None)
    reason = wording.unfit(value, info.annotation, info.metadata) if info is not None else None
    return f"{name}={value[:_SHOWN]}: {reason or wording.sentence_of(item['msg'])}"


def install(app: FastAPI) -> None:
    """Installs the handlers that turn every error of a route into a problem document."""

    async def on_service_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, errors.ServiceError)
        return respond(request, error)

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return respond(request, errors.InvalidParameter(_unfit(request, error.errors()[0])))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 405:
            response = respond(request, errors.MethodNotAllowed(f"{request.method} is not offered here"))
            response.headers.update(error.headers or {})
            return response
        return respond(request, errors.NotFound("there is nothing at this path; /docs lists what there is"))

    app.add_exception_handler(errors.ServiceError, on_service_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
