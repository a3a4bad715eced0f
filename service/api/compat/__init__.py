"""The contracts of other servers, one file each; none is served unless the setting ``compat`` names it."""

from __future__ import annotations

from fastapi import APIRouter

from service.api.compat import huggingface, sagemaker, torchserve, v1, vertex
from service.settings import Settings

_MAKERS = {
    "vertex": vertex.router,  # first: its routes are the platform's choice, and may be named as ours are
    "torchserve": torchserve.router,
    "tfserving": v1.tfserving_router,
    "kserve-v1": v1.kserve_router,
    "sagemaker": sagemaker.router,
    "huggingface": huggingface.router,
}


def routers(settings: Settings) -> list[APIRouter]:
    """The routes of the contracts that ``settings`` names."""
    chosen = settings.listed_compat
    return [make(settings) for name, make in _MAKERS.items() if name in chosen]


def probes(settings: Settings) -> frozenset[str]:
    """Paths that a platform asks for its own sake: without a key, by any host name, and never in the access log."""
    paths = {
        "torchserve": "/ping",
        "sagemaker": "/ping",
        "vertex": settings.vertex_health_route,
        "huggingface": "/health",
    }
    return frozenset(paths[name] for name in settings.listed_compat if name in paths)


def takes_predict(settings: Settings) -> bool:
    """Whether `POST /predict` is the platform's own predict route, with a contract of its own."""
    return "vertex" in settings.listed_compat and settings.vertex_predict_route == "/predict"
