"""Refuses unknown query parameters, since a misspelt one would otherwise be ignored in silence."""

from __future__ import annotations

from fastapi import Request
from fastapi.routing import APIRoute

from service.errors import InvalidParameter
from service.options.nearest import did_you_mean, one_of

#: Probes, to which an orchestrator may add parameters of its own.
_PROBES = frozenset({"/v2/health/live", "/v2/health/ready"})


async def known_only(request: Request) -> None:
    """Raises `InvalidParameter` for an unknown query parameter; a dependency of the routes about images and models."""
    if request.scope["path"] in _PROBES:
        return
    if not request.query_params:
        return
    route: APIRoute = request.scope["route"]
    known = tuple(parameter.alias for parameter in route.dependant.query_params)
    for name in request.query_params:
        if name not in known:
            raise InvalidParameter(f"there is no query parameter '{name}'{_instead(name, known)}")


def _instead(name: str, known: tuple[str, ...]) -> str:
    if not known:
        return "; this route has none"
    return did_you_mean(name, known) or f"; this route has {one_of(known)}"
