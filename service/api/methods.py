"""HEAD, OPTIONS and a trailing slash for every route, which FastAPI does not handle."""

from __future__ import annotations

from starlette.responses import Response
from starlette.routing import Match, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: The methods that a route may have.
_ASKED = ("GET", "POST", "PUT", "DELETE", "PATCH")


class Methods:
    """Middleware for the routes of ``router``.

    HEAD is answered as GET without its content (RFC 9110, 9.3.2). OPTIONS lists the methods; load balancers send it as
    a health check. ``/predict/`` is answered as ``/predict``, since a redirect would lose the body and a prefix.
    """

    def __init__(self, app: ASGIApp, router: Router) -> None:
        self._app = app
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            if path.endswith("/") and path != "/" and self._methods({**scope, "path": path[:-1]}):
                scope["path"] = path[:-1]
            if scope["method"] == "HEAD":
                await self._head(scope, receive, send)
                return
            if scope["method"] == "OPTIONS" and (methods := self._methods(scope)):
                allow = ", ".join([*methods, "HEAD"] if "GET" in methods else methods)
                await Response(status_code=204, headers={"Allow": f"{allow}, OPTIONS"})(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _head(self, scope: Scope, receive: Receive, send: Send) -> None:
        as_get = {**scope, "method": "GET"}

        async def without_content(message: Message) -> None:
            if message["type"] == "http.response.start" and "route" in as_get:
                scope["route"] = as_get["route"]
            await send(message)

        await self._app(as_get, receive, without_content)

    def _methods(self, scope: Scope) -> list[str]:
        return [
            method
            for method in _ASKED
            if any(
                route.matches({**scope, "method": method})[0] is Match.FULL for route in self._router.routes
            )
        ]
