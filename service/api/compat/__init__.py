"""The HTTP interfaces of other servers, one file each. Each is served only if the setting ``compat`` names it."""

from __future__ import annotations

from fastapi import APIRouter

from service.api.compat import huggingface, sagemaker, torchserve, v1, vertex
from service.settings import Settings

_MAKERS = {
    "vertex": vertex.router,  # first: the platform chooses its paths, which may be those of other routes
    "torchserve": torchserve.router,
    "tfserving": v1.tfserving_router,
    "kserve-v1": v1.kserve_router,
    "sagemaker": sagemaker.router,
    "huggingface": huggingface.router,
}


def routers(settings: Settings) -> list[APIRouter]:
    """The routes of the contracts in ``settings``."""
    chosen = settings.listed_compat
    return [make(settings) for name, make in _MAKERS.items() if name in chosen]


def probes(settings: Settings) -> frozenset[str]:
    """The paths of platforms' probes, which need no key, accept any host name and are logged at level debug only."""
    paths = {
        "torchserve": "/ping",
        "sagemaker": "/ping",
        "vertex": settings.vertex_health_route,
        "huggingface": "/health",
    }
    return frozenset(paths[name] for name in settings.listed_compat if name in paths)


def takes_predict(settings: Settings) -> bool:
    """True if `POST /predict` is Vertex AI's predict route, with another contract."""
    return "vertex" in settings.listed_compat and settings.vertex_predict_route == "/predict"
