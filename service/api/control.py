"""`POST /models/load` and `/models/rollback`: change the version of a model while it serves.

A client of these routes can name any file that the service can read. So they are for operators: clients with an API
key, or all clients if the setting ``model_control`` is open.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import Response

from service.api import body, documents
from service.api.context import context_of
from service.api.inference import reply
from service.api.request_state import request_state_of
from service.api.schemas import LoadRequest, RollbackRequest, SwitchResponse, problems
from service.errors import Forbidden, InvalidParameter, MalformedRequest, NotReady, UnsupportedMediaType
from service.options import wording
from service.options.nearest import did_you_mean
from service.shared.orders import Orders

#: The largest body, in bytes.
_MAX_BODY_BYTES = 64 * 1024
_JSON = "application/json"
#: Seconds within which the supervisor refuses a load that cannot begin.
_MOMENT = 0.2

Asked = TypeVar("Asked", LoadRequest, RollbackRequest)

_STATUSES = (400, 403, 404, 409, 413, 415, 422, 503, 507)

router = APIRouter(prefix="/models", tags=["models"], responses=problems(*_STATUSES))


def _takes(model: type[LoadRequest] | type[RollbackRequest]) -> dict[str, Any]:
    """The schema of the request body, which FastAPI does not know, since `_document` reads it within a limit."""
    return {"requestBody": {"content": {_JSON: {"schema": model.model_json_schema()}}}}


@router.post("/load", response_model=SwitchResponse, openapi_extra=_takes(LoadRequest))
async def load(request: Request) -> Response:
    """Loads a model beside the one that serves, checks it, and then replaces the old one.

    No request is lost or refused: those that arrived before the switch are answered by the old model. Settings that
    are not given stay as they are. The answer comes after the switch. A load that fails changes nothing. With
    `"wait": false` the answer is 202 at once, and `/healthz` shows the progress.
    """
    orders = _allowed(request)
    wanted = await _document(request, LoadRequest)
    order = orders.give(
        "load",
        wanted.name,
        settings=wanted.settings(),
        other_classes=wanted.other_classes,
        least_agreement=wanted.least_agreement,
    )
    if wanted.wait or (await asyncio.wait({order}, timeout=_MOMENT))[0]:
        return reply(await order)
    return Response('{"status": "loading"}', 202, media_type=_JSON)


@router.post("/rollback", response_model=SwitchResponse, openapi_extra=_takes(RollbackRequest))
async def rollback(request: Request) -> Response:
    """Goes back at once to the model before the last switch, whose engine is kept for a while."""
    orders = _allowed(request)
    wanted = await _document(request, RollbackRequest)
    return reply(await orders.give("rollback", wanted.name))


def _allowed(request: Request) -> Orders:
    """The channel for orders. Raises `Forbidden` if the client has no right to it, `NotReady` without a supervisor."""
    context = context_of(request)
    control = context.settings.model_control
    if control == "off":
        raise Forbidden("switching models is turned off here (model_control)")
    if control == "keys" and context.settings.api_keys_file is None:
        raise Forbidden(
            "switching models takes an API key, and this service has none: set api_keys_file, or model_control=open "
            "if all clients may do it"
        )
    if context.orders is None:
        raise NotReady("there is no supervisor that could switch models")
    return context.orders


async def _document(request: Request, model: type[Asked]) -> Asked:
    """Parses the body; an empty one counts as an empty JSON object. Raises `RequestError`."""
    request_state_of(request).deadline(request, context_of(request).settings.request_timeout_ms)
    raw = await body.read(request, _MAX_BODY_BYTES)
    # This type protects against other sites' pages: a browser sends it across origins only if CORS allows it.
    if raw and body.media_type(request) != _JSON:
        raise UnsupportedMediaType(f"the body has to be {_JSON}")
    documents.check(raw)
    try:
        return model.model_validate_json(bytes(raw) or b"{}")
    except ValidationError as error:
        raise _unfit(error) from None


def _unfit(error: ValidationError) -> MalformedRequest | InvalidParameter:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return MalformedRequest("the body is no JSON")
    name = ".".join(map(str, first["loc"])) or "the body"
    if first["type"] == "extra_forbidden":
        return InvalidParameter(
            f"there is no {name[:100]!r} here{did_you_mean(name, LoadRequest.model_fields)}"
        )
    return InvalidParameter(f"{name}: {wording.sentence_of(first['msg'])}")
