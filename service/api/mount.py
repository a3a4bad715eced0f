"""The service behind a proxy's prefix: ``https://example.com/classify/predict`` with root_path=/classify."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


class Mount:
    """The outermost ASGI application: strips ``root_path`` from a request's path, unless the proxy has done so."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._prefix = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path, raw = scope["path"], scope.get("raw_path")
            if path == self._prefix or path.startswith(self._prefix + "/"):
                scope = {**scope, "path": path[len(self._prefix) :] or "/"}
                if raw is not None and raw.startswith(self._prefix.encode()):
                    scope["raw_path"] = raw[len(self._prefix) :] or b"/"
        await self._app(scope, receive, send)
