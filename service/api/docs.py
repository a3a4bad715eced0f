"""`GET /docs`: Swagger UI over `/openapi.json`, from the package's own files; FastAPI's page loads them from a CDN."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from service.api.page import HEADERS

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parent / "swagger"
_FILES = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "start.js": "text/javascript; charset=utf-8",
}
_READ = ["GET", "HEAD"]


@router.api_route("/docs", methods=_READ)
async def docs() -> Response:
    """Serves the page."""
    return Response((_FOLDER / "index.html").read_bytes(), media_type="text/html", headers=HEADERS)


@router.api_route("/docs/{name}", methods=_READ)
async def docs_file(name: str, request: Request) -> Response:
    """Serves a script or the style sheet. Large ones are stored as gzip and sent so if the client accepts it."""
    if name not in _FILES:
        raise HTTPException(404)
    headers = {**HEADERS, "Content-Type": _FILES[name]}
    packed = _packed(name)
    if packed is None:
        return Response((_FOLDER / name).read_bytes(), headers=headers)
    headers["Vary"] = "Accept-Encoding"
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(gzip.decompress(packed), headers=headers)
    return Response(packed, headers={**headers, "Content-Encoding": "gzip"})


@cache
def _packed(name: str) -> bytes | None:
    path = _FOLDER / f"{name}.gz"
    return path.read_bytes() if path.exists() else None
