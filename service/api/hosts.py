"""The host names that the service answers to; a protection against DNS rebinding by other sites' pages."""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.errors import respond
from service.api.head import HOST
from service.api.keys import OPEN
from service.errors import MisdirectedRequest


class Hosts:
    """Middleware that refuses requests whose host is none of ``allowed``; ``*.example.com`` means all names under it.

    Probes and scrapes name a pod's address and are let through.
    """

    def __init__(self, app: ASGIApp, allowed: Iterable[str], probes: frozenset[str] = frozenset()) -> None:
        """``probes`` are paths that a hosting platform asks under its own host name."""
        self._app = app
        self._open = OPEN | probes
        self._names = {name.lower() for name in allowed}
        self._suffixes = tuple(name[1:] for name in self._names if name.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._open or self._is_allowed(scope):
            await self._app(scope, receive, send)
            return
        error = MisdirectedRequest("this service does not answer to that host name (allowed_hosts)")
        await respond(Request(scope), error)(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        named = [value for name, value in scope["headers"] if name == b"host"]
        found = HOST.fullmatch(named[0]) if len(named) == 1 else None
        if found is None:
            return False
        host = found[1].decode("latin-1").lower().rstrip(".")
        return host in self._names or (bool(self._suffixes) and host.endswith(self._suffixes))
