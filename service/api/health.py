"""Liveness, readiness, the state in words, and the metrics. None of these routes waits for the model."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api.context import context_of
from service.api.schemas import Health, Live, Ready, Version, problems
from service.engine.readings import LoadSource, readings
from service.observability.metrics import exposition
from service.observability.snapshot import Snapshot
from service.observability.version import build_information

router = APIRouter(tags=["health"])


@router.get("/livez", responses=problems(503))
async def livez(request: Request) -> Live:
    """Returns 200 unless a restart would help: the event loop turns, and a start makes progress.

    A download that moves counts as progress, however long it takes.
    """
    context_of(request).check_alive()
    return Live()


@router.get("/readyz", responses=problems(503))
async def readyz(request: Request) -> Ready:
    """Returns 200 while new traffic should come here: the model is warm, the engine lives, no drain has begun."""
    context_of(request).check_ready()
    return Ready()


@router.get("/healthz")
async def healthz(request: Request) -> Health:
    """Returns the state in words, for people, always with status 200."""
    context = context_of(request)
    document = context.status.to_json()
    document["state"] = context.state
    return Health(**document)


@router.get("/version")
async def version() -> Version:
    """Returns the version of the service and of Python."""
    return Version(**build_information())


@router.get("/metrics", response_class=Response)
def metrics(request: Request) -> Response:
    """Returns the whole service's metrics in Prometheus' text format, or as OpenMetrics if asked for.

    Runs in a thread, since it reads the files of all processes.
    """
    context = context_of(request)
    status, answering = context.status, context.models.answering
    snapshot = Snapshot(
        context.state,
        status.restarts,
        status.frontend_restarts,
        context.connected,
        readings(
            [
                LoadSource(
                    served.card, connection.arena, served in answering and connection in served.client.asked
                )
                for served in context.models.all
                if served is not context.models.shadow
                for connection in served.client.connections
            ]
        ),
        [served.card for served in answering],
        context.supervisor,
        status.switches,
        [engine["state"] for engine in status.engines if engine["role"] == "current"],
    )
    exemplars = context.tracing.exemplars if context.tracing is not None else None
    content, content_type = exposition(snapshot, request.headers.get("accept", ""), exemplars)
    return Response(content, media_type=content_type)
