"""The ASGI application: routes, middleware and error handling around one `Context`."""

from __future__ import annotations

from fastapi import Depends, FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Router
from starlette.types import ASGIApp

from service import __version__
from service.api import (
    compat,
    control,
    docs,
    errors,
    explain,
    features,
    health,
    models,
    open_inference,
    page,
    predict,
)
from service.api.context import Context
from service.api.hosts import Hosts
from service.api.keys import KeyMiddleware, Keys, describe_keys
from service.api.methods import Methods
from service.api.mount import Mount
from service.api.queries import known_only
from service.api.request_state import RequestMiddleware
from service.api.shortcut import ShortCut
from service.settings import Settings

_DESCRIPTION = (
    "ImageNet classification with a VGG or a DenseNet. Every error is an RFC 9457 problem document."
)

#: CORS: headers that a script of another origin may send, and headers that it may read. Tracers in browsers add the
#: last three of the first list (W3C Trace Context and Baggage).
_FROM_SCRIPTS = [
    "Authorization",
    "Content-Encoding",
    "Content-Type",
    "Inference-Header-Content-Length",
    "X-API-Key",
    "X-Request-ID",
    "X-Request-Timeout-Ms",
    "traceparent",
    "tracestate",
    "baggage",
]
_TO_SCRIPTS = [
    "Inference-Header-Content-Length",
    "Retry-After",
    "Server-Timing",
    "X-Class-Id",
    "X-Request-ID",
]


def create_app(context: Context, keys: Keys | None = None) -> ASGIApp:
    """The ASGI application of one front-end. Without ``keys`` it serves everyone."""
    app = create_api(context.settings, guarded=keys is not None)
    for layer in reversed(_middleware(context, keys, app.router)):  # the last that is added is asked first
        app.add_middleware(layer.cls, *layer.args, **layer.kwargs)
    root_path = context.settings.root_path
    return Mount(app, root_path) if root_path else app


def create_api(settings: Settings, *, guarded: bool = False) -> FastAPI:
    """The FastAPI application with all routes of ``settings`` and their schema, without any middleware.

    ``guarded`` says that the service needs API keys, which the schema then describes.
    """
    app = FastAPI(
        title="imagenet-serve",
        version=__version__,
        description=_DESCRIPTION,
        generate_unique_id_function=lambda route: route.name,
        docs_url=None,  # FastAPI's own pages load scripts from another host
        redoc_url=None,
        redirect_slashes=False,
        # Relative to the schema's own URL, so that a prefix that a proxy strips is kept.
        servers=[{"url": settings.root_path or "."}],
        root_path_in_servers=False,
    )
    # These come first, since a platform's route may have the path of one of the service's.
    for router in compat.routers(settings):
        app.include_router(router)
    for room in (predict, features, explain, models, control, open_inference):
        app.include_router(room.router, dependencies=[Depends(known_only)])
    for room in (health, docs, page):
        app.include_router(room.router)
    errors.install(app)
    if guarded:
        describe_keys(app)
    return app


def _middleware(context: Context, keys: Keys | None, router: Router) -> list[Middleware]:
    """The middleware around all routes, the outermost first."""
    probes = compat.probes(context.settings)
    around = [Middleware(RequestMiddleware, context=context, probes=probes)]
    if context.settings.listed_cors_origins:
        around.append(
            Middleware(
                CORSMiddleware,
                allow_origins=context.settings.listed_cors_origins,
                allow_methods=["GET", "HEAD", "POST"],
                allow_headers=_FROM_SCRIPTS,
                expose_headers=_TO_SCRIPTS,
            )
        )
    around.append(Middleware(Methods, router=router))
    if context.settings.listed_allowed_hosts:
        around.append(Middleware(Hosts, allowed=context.settings.listed_allowed_hosts, probes=probes))
    if keys is not None:
        around.append(Middleware(KeyMiddleware, keys=keys, probes=probes))
    if not compat.takes_predict(context.settings):
        around.append(Middleware(ShortCut))
    return around
