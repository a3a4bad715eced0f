"""The short way of the one route that carries the load: `POST /predict` without FastAPI's machinery.

FastAPI spends more CPU on finding a route, resolving its dependencies and entering three exit stacks than
the service spends on the request. The function that is called, its errors and its answers are the same;
FastAPI declares the route, documents it, and gets every request that is not plainly well-formed here,
so that what it says of a bad parameter is said by it alone.
"""

from __future__ import annotations

import re

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api import predict
from service.api.errors import respond
from service.errors import ServiceError

#: Query strings whose meaning is beyond doubt. Of a parameter given twice both ways take the last.
PLAIN = re.compile(
    rb"(?:(?:top_k=(?P<top_k>[1-9][0-9]{0,5})|activation=(?P<activation>softmax|none)"
    rb"|model=(?P<model>[A-Za-z0-9._-]{1,100}))(?:&(?=.)|$))*"
)

_ROUTE = next(route for route in predict.router.routes if getattr(route, "path", None) == "/predict")


class ShortCut:
    """The innermost middleware: answers the plain `POST /predict`, and leaves everything else to ``app``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = None
        if scope["type"] == "http" and scope["path"] == "/predict" and scope["method"] == "POST":
            query = PLAIN.fullmatch(scope["query_string"])
        if query is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = _ROUTE  # what metrics call it
        request = Request(scope, receive, send)
        top_k, activation, model = query.group("top_k", "activation", "model")
        try:
            response = await predict.predict(
                request,
                int(top_k) if top_k else None,
                "none" if activation == b"none" else "softmax",
                model.decode() if model else None,
            )
        except ServiceError as error:
            response = respond(request, error)
        await response(scope, receive, send)
