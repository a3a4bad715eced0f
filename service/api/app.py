"""The application: routes, middleware and error handling around one `Context`."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.routing import APIRoute

from service import __version__
from service.api import errors, explain, features, health, models, open_inference, page, predict
from service.api.context import Context
from service.api.exchange import Envelope
from service.api.keys import Guard, Keys
from service.api.shortcut import ShortCut

_DESCRIPTION = (
    "ImageNet classification with a VGG or a DenseNet. Every error is an RFC 9457 problem document."
)


def create_app(context: Context, keys: Keys | None = None) -> FastAPI:
    """The ASGI application of one front-end. ``keys`` None serves everyone."""
    app = FastAPI(
        title="imagenet-serve",
        version=__version__,
        description=_DESCRIPTION,
        generate_unique_id_function=_operation_id,
    )
    app.state.context = context
    for room in (predict, features, explain, models, health, open_inference, page):
        app.include_router(room.router)
    errors.install(app)
    app.add_middleware(ShortCut)  # the last that is added is the first that is asked
    if keys is not None:
        app.add_middleware(Guard, keys=keys)
    app.add_middleware(Envelope, context=context)
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name
