"""The state of one request, and the middleware around all requests: ids, times, metrics, the access log.

The middleware is plain ASGI, since Starlette's ``BaseHTTPMiddleware`` hides a client's disconnect.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import re
import time
from dataclasses import dataclass, field

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.context import Context
from service.api.errors import defect, respond
from service.api.intake import Reservation
from service.api.numbers import positive
from service.api.served import Served
from service.engine.client import SlotAnswer
from service.errors import Draining, InvalidParameter
from service.observability.metrics import PROBES
from service.observability.tracing import Image, Trace
from service.settings import Settings

log = logging.getLogger("service.access")

#: The request ids that are echoed. Others are replaced, so that no client can forge a log line.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_STAGES_HERE = {"receive", "respond"}
#: The probe that people read. The other probes and scrapes come every few seconds and are logged at level debug only.
_FOR_PEOPLE = "/healthz"
_PRIORITY, _PRIORITIES = "x-priority", ("interactive", "bulk")
#: nginx's status for a client that disconnected before it was answered.
_CLIENT_GONE = 499
#: A header of every answer, which keeps a browser from running JSON or an image as a script.
_NOSNIFF = (b"x-content-type-options", b"nosniff")


@dataclass
class RequestState:
    """One request. Times are seconds of the monotonic clock, ``stages`` are durations in seconds."""

    id: str
    started: float
    """The arrival of its first byte, or of the request if the HTTP server does not say."""
    stages: dict[str, float] = field(default_factory=dict)
    finished: float | None = None
    """The end of the model's work, at which the stage ``respond`` begins."""
    batch: int | None = None
    status: int = 0
    """0 until the response has begun."""
    server_timing: str = ""
    due: float = math.inf
    """The deadline of the body and of the answer; set by `deadline`."""
    bulk: bool = False
    """True for the lower priority; set by `deadline`."""
    gone: bool = False
    """True if the client disconnected before it was answered."""
    counted: bool = False
    """True once the metrics have counted it."""
    trace: Trace | None = None
    """None unless the request is traced."""
    reservation: Reservation | None = None
    """The bytes of its body in the intake's budget; None before the body is read."""
    served: Served | None = None
    """The version of the model that answers it to its end; set by `ask`."""

    def ask(self, context: Context, name: str | None = None) -> Served:
        """The model of that ``name`` (None: the default one), in the version that answers at the first call.

        Raises `NotReady`, `NotFound`. `leave` must follow.
        """
        if self.served is None:
            self.served = context.served(name)
            self.served.uses += 1
        return self.served

    def leave(self) -> None:
        """Ends the request's use of the model's version."""
        if self.served is not None:
            self.served.uses -= 1
            self.served = None

    def deadline(self, request: Request, timeout_ms: float) -> float:
        """Sets and returns the deadline: ``timeout_ms`` after the first byte, or earlier if the client asks.

        Sets the priority as well. Raises `InvalidParameter` for an invalid header.
        """
        self.bulk = _is_bulk(request)
        asked = request.headers.get("x-request-timeout-ms")
        if asked is not None:
            timeout_ms = min(timeout_ms, positive(asked, "X-Request-Timeout-Ms (milliseconds)"))
        self.due = self.started + timeout_ms / 1000
        return self.due

    def record_stages(self, stages: dict[str, float], answer: SlotAnswer) -> None:
        """Records the stages of a finished image. Of several images, the last one gives the request's stages."""
        if self.trace is not None:
            self.trace.images.append(Image(stages, answer.finished, answer.batch, answer.batch_size))
        if self.finished is None or answer.finished >= self.finished:
            self.stages.update(stages)
            self.finished, self.batch = answer.finished, answer.batch

    def timings(self) -> dict[str, float]:
        """The stages in milliseconds, for the answer's body. Sets ``Server-Timing`` to the same values."""
        milliseconds = {name: self.stages.get(name, 0.0) for name in ("decode", "queue", "inference")}
        milliseconds["total"] = time.monotonic() - self.started
        timings = {name: round(1000 * seconds, 3) for name, seconds in milliseconds.items()}
        self.server_timing = ", ".join(f"{name};dur={value}" for name, value in timings.items())
        return timings


def request_state_of(request: Request) -> RequestState:
    """Returns the state that the middleware keeps of ``request``."""
    state: RequestState = request.scope["request_state"]
    return state


class RequestMiddleware:
    """The outermost middleware: request ids, timing, metrics, the access log, the end of a drain."""

    def __init__(self, app: ASGIApp, context: Context, probes: frozenset[str] = frozenset()) -> None:
        """``probes`` are a hosting platform's own paths beside the service's."""
        self._app = app
        self._probes = probes
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        state = RequestState(_request_id(headers), scope.get("began") or time.monotonic())
        scope["request_state"], scope["context"] = state, self._context
        tracing = self._context.tracing
        scope["probe"] = PROBES.fullmatch(scope["path"]) is not None or scope["path"] in self._probes
        if tracing is not None and not _asked_by_machines(scope):
            state.trace = tracing.begin(scope, headers, state.started)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                state.status = message["status"]
                message["headers"] = [*message["headers"], *self._headers(state)]
            elif not message.get("more_body"):
                self._count(scope, state)  # before the answer ends, so that an answered request is counted
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            state.status = _CLIENT_GONE
        except asyncio.CancelledError:
            # There are two cases: a disconnect at the end of an `Admission`'s block, or the end of drain_timeout_ms.
            if state.gone:
                state.status = _CLIENT_GONE
            elif state.status:
                raise
            else:
                error = Draining("the service ended before the answer was there (drain_timeout_ms)")
                await respond(Request(scope), error)(scope, receive, send_with_headers)
        except Exception:
            # The border of a request: the log gets the defect, the client a message without details.
            log.exception("request %s failed", state.id)
            if state.status:
                raise
            await respond(Request(scope), defect())(scope, receive, send_with_headers)
        finally:
            if state.reservation is not None:
                state.reservation.release()
            state.leave()
            self._count(scope, state)
            self._account(scope, state)

    def _headers(self, state: RequestState) -> list[tuple[bytes, bytes]]:
        headers = [(b"x-request-id", state.id.encode()), _NOSNIFF]
        if state.server_timing:
            headers.append((b"server-timing", state.server_timing.encode()))
        if self._context.draining:
            headers.append((b"connection", b"close"))
        return headers

    def _count(self, scope: Scope, state: RequestState) -> None:
        if state.counted:
            return
        state.counted = True
        route = _route(scope)
        self._context.metrics.requests.labels(route, str(state.status)).inc()
        self._context.metrics.request_duration.labels(route).observe(time.monotonic() - state.started)

    def _account(self, scope: Scope, state: RequestState) -> None:
        now = time.monotonic()
        duration = now - state.started
        route = _route(scope)
        metrics = self._context.metrics
        if state.finished is not None:
            state.stages["respond"] = now - state.finished
        for stage in state.stages.keys() & _STAGES_HERE:  # `Admission` observes the stages of images
            metrics.stage_duration.labels(stage).observe(state.stages[stage])
        if state.trace is not None and self._context.tracing is not None:
            self._context.tracing.end(
                state.trace,
                request_id=state.id,
                route=route,
                status=state.status,
                stages=state.stages,
                started=state.started,
                now=now,
            )
        level = logging.DEBUG if _asked_by_machines(scope) else logging.INFO
        if log.isEnabledFor(level):
            extra = {"request_state": state, "duration": duration}
            log.log(level, "%s %s %d", scope["method"], scope["path"], state.status, extra=extra)


def _asked_by_machines(scope: Scope) -> bool:
    return scope["path"] != _FOR_PEOPLE and bool(scope["probe"])


def _is_bulk(request: Request) -> bool:
    """True if the request has the lower priority, by its header, its key or its route."""
    settings: Settings = request.scope["context"].settings
    fixed = request.scope.get("bulk", False) or request.scope["path"] in settings.listed_bulk_routes
    return asks_for_bulk(request.headers.get(_PRIORITY, "interactive")) or fixed


def asks_for_bulk(priority: str) -> bool:
    """True if a request's own ``priority`` is bulk. Raises `InvalidParameter` for an unknown word."""
    asked = priority.strip().lower()
    if asked not in _PRIORITIES:
        raise InvalidParameter(f"X-Priority must be {' or '.join(_PRIORITIES)}")
    return asked == "bulk"


def _request_id(headers: dict[bytes, bytes]) -> str:
    offered = headers.get(b"x-request-id", b"").decode("latin-1")
    if offered and _REQUEST_ID.fullmatch(offered):
        return offered
    return new_id()


def new_id() -> str:
    """A new request id: unique but not secret, so it needs no system call. Every fork seeds the generator anew."""
    return f"{random.getrandbits(128):032x}"


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "unmatched")
