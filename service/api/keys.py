"""API keys from a file, one a line; empty lines and lines that begin with # are ignored.

A line ``KEY bulk`` is a key whose requests have the lower priority, as with ``X-Priority: bulk``.
"""

from __future__ import annotations

import hmac
import re
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.errors import respond
from service.errors import ConfigurationError, Unauthorized


class Keys:
    """The keys of a file, read again when the file changes. Raises `ConfigurationError` if it holds no key."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version: tuple[int, int, int] | None = None
        self._keys: list[bytes] = []
        self._bulk: frozenset[bytes] = frozenset()
        self._refresh()
        if not self._keys:
            raise ConfigurationError("api_keys_file cannot be read or holds no key")

    def __repr__(self) -> str:
        return f"<Keys {len(self._keys)}>"

    def admit(self, offered: bytes) -> bool:
        """True if ``offered`` is one of the keys. Takes constant time, so that it reveals nothing about a key."""
        self._refresh()
        found = False
        for key in self._keys:
            found |= hmac.compare_digest(key, offered)
        return found

    def is_bulk(self, offered: bytes) -> bool:
        """True if the admitted key ``offered`` is a bulk key."""
        return offered in self._bulk

    def any(self) -> bytes:
        """A valid key, for a client that this host starts itself."""
        return self._keys[0]

    def _refresh(self) -> None:
        """Reads the file if it has changed. While it cannot be read, as during a rotation, the old keys stay valid."""
        try:
            status = self._path.stat()
            version = (status.st_mtime_ns, status.st_size, status.st_ino)
            if version == self._version:
                return
            data = self._path.read_bytes()
        except OSError:
            return
        self._version = version
        self._keys, self._bulk = keys_in(data)


def keys_in(data: bytes) -> tuple[list[bytes], frozenset[bytes]]:
    """The keys in a file's bytes, and those of them that are bulk keys."""
    lines = [line.split() for line in data.splitlines() if line.strip() and not line.startswith(b"#")]
    bulk = frozenset(words[0] for words in lines if words[1:] == [b"bulk"])
    return [words[0] if words[0] in bulk else b" ".join(words) for words in lines], bulk


#: Paths that need no key, since the orchestrator and the scraper have none.
OPEN = frozenset({"/livez", "/readyz", "/metrics"})
#: Paths of static files, which need no key: the page and Swagger UI ask the user for one.
_STATIC = re.compile(r"/|/page/.+|/docs|/docs/.+|/openapi\.json")


class KeyMiddleware:
    """Middleware that refuses requests without a key, except for probes, the metrics and static files."""

    def __init__(self, app: ASGIApp, keys: Keys, probes: frozenset[str] = frozenset()) -> None:
        """``probes`` are paths of a hosting platform that need no key."""
        self._app = app
        self._open = OPEN | probes
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_open(scope):
            await self._app(scope, receive, send)
            return
        offered = _offered(scope)
        if self._keys.admit(offered):
            scope["bulk"] = self._keys.is_bulk(offered)
            await self._app(scope, receive, send)
            return
        error = Unauthorized(
            "this service needs an API key: send Authorization: Bearer KEY or X-API-Key: KEY"
        )
        await respond(Request(scope), error)(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        path, reads = scope["path"], scope["method"] in ("GET", "HEAD")
        return path in self._open or (reads and _STATIC.fullmatch(path) is not None)


def describe_keys(app: FastAPI) -> None:
    """Adds the two ways to send a key to the schema, so that Swagger UI offers *Authorize*."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        schema = plain()
        schemes = {
            "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer KEY"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        schema.setdefault("components", {})["securitySchemes"] = schemes
        schema["security"] = [{name: []} for name in schemes]
        for path in OPEN & schema["paths"].keys():
            for operation in schema["paths"][path].values():
                operation["security"] = []
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _offered(scope: Scope) -> bytes:
    headers = dict(scope["headers"])
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return bytes(key.strip())
    return bytes(headers.get(b"x-api-key", b""))
