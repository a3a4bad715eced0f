"""`GET /`: the page to try the model in a browser, its files (the folder ``page`` beside this module) and its samples.

The page loads nothing from other hosts, which its content security policy enforces. Its links are relative, so that a
proxy's prefix is kept.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

from service.api.context import context_of
from service.host.samples import samples

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parent / "page"
_FILES = StaticFiles(directory=_FOLDER)

#: Media types of the files. Python's own table depends on the host, and ``nosniff`` blocks scripts of other types.
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}

#: The headers of all files for a browser.
HEADERS = {
    # blob: is for the visitor's own image, data: for images that the browser draws.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; script-src 'self'; "
    "style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    # The browser asks with the ETag each time, so that an upgraded service does not get its predecessor's scripts.
    "Cache-Control": "no-cache",
}
_READ = ["GET", "HEAD"]


@router.api_route("/", methods=_READ)
async def page(request: Request) -> Response:
    """Serves the page."""
    return await _file("index.html", request)


@router.api_route("/page/samples.json", methods=_READ)
async def sample_list() -> Response:
    """Returns the samples, ``[{"name", "url"}]``, with URLs relative to ``/page/``."""
    listed = [{"name": name, "url": f"samples/{quote(path.name)}"} for name, path in samples()]
    return JSONResponse(listed, headers=HEADERS)


@router.api_route("/page/limits.json", methods=_READ)
async def limits(request: Request) -> Response:
    """Returns the limits of an upload, so that the page can check them before it sends an image."""
    settings = context_of(request).settings
    names = ("max_upload_bytes", "max_image_pixels", "max_images_per_request")
    return JSONResponse({name: getattr(settings, name) for name in names}, headers=HEADERS)


@router.api_route("/page/samples/{name}", methods=_READ)
async def sample(name: str) -> Response:
    """Serves a sample."""
    for _, path in samples():
        if path.name == name:
            return FileResponse(path, headers=HEADERS)
    raise HTTPException(404)


@router.api_route("/page/{name}", methods=_READ)
async def page_file(name: str, request: Request) -> Response:
    """Serves a script, a style sheet or a drawing of the page."""
    return await _file(name, request)


async def _file(name: str, request: Request) -> Response:
    response = await _FILES.get_response(name, request.scope)
    response.headers.update(HEADERS)
    if response.status_code != 304 and Path(name).suffix in _TYPES:
        response.headers["content-type"] = _TYPES[Path(name).suffix]
    return response
