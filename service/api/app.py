"""The application: routes, middleware and error handling around one `Context`."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware

from service import __version__
from service.api import docs, errors, explain, features, health, models, open_inference, page, predict
from service.api.context import Context
from service.api.exchange import Envelope
from service.api.hosts import Hosts
from service.api.keys import Guard, Keys
from service.api.shortcut import ShortCut

_DESCRIPTION = (
    "ImageNet classification with a VGG or a DenseNet. Every error is an RFC 9457 problem document."
)

#: What a page of another origin may send beside what every form can, and what its script gets to read.
_FROM_SCRIPTS = ["Authorization", "Content-Type", "X-API-Key", "X-Request-ID", "X-Request-Timeout-Ms"]
_TO_SCRIPTS = ["Retry-After", "Server-Timing", "X-Class-Id", "X-Request-ID"]


def create_app(context: Context, keys: Keys | None = None) -> FastAPI:
    """The ASGI application of one front-end. ``keys`` None serves everyone."""
    app = FastAPI(
        title="imagenet-serve",
        version=__version__,
        description=_DESCRIPTION,
        generate_unique_id_function=_operation_id,
        docs_url=None,  # FastAPI's pages take their scripts from another host
        redoc_url=None,
    )
    app.state.context = context
    for room in (predict, features, explain, models, health, open_inference, docs, page):
        app.include_router(room.router)
    errors.install(app)
    app.add_middleware(ShortCut)  # the last that is added is the first that is asked
    if keys is not None:
        app.add_middleware(Guard, keys=keys)
    if context.settings.listed_allowed_hosts:
        app.add_middleware(Hosts, allowed=context.settings.listed_allowed_hosts)
    if context.settings.listed_cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=context.settings.listed_cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=_FROM_SCRIPTS,
            expose_headers=_TO_SCRIPTS,
        )
    app.add_middleware(Envelope, context=context)
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name
