"""One request and its response: the id, the clock, what is measured, and what is logged of it.

`Envelope` is plain ASGI on purpose: Starlette's ``BaseHTTPMiddleware`` hides a client's hang-up.
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
from service.api.intake import Share
from service.api.numbers import positive
from service.api.served import Served
from service.engine.client import Answer
from service.errors import Draining, InvalidParameter
from service.observability.metrics import PROBES
from service.observability.tracing import Image, Trace
from service.settings import Settings

log = logging.getLogger("service.access")

#: What an echoed request id may hold; anything else is replaced, so that no log line can be forged.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_STAGES_HERE = {"receive", "respond"}
#: What people read; other probes and scrapes come every few seconds for ever, and say nothing that metrics do not.
_FOR_PEOPLE = "/healthz"
_PRIORITY, _PRIORITIES = "x-priority", ("interactive", "bulk")
#: nginx's number for a client that went away before it was answered.
_CLIENT_GONE = 499
#: On every answer: what is JSON or a picture of somebody's must not become a script in a browser.
_NOSNIFF = (b"x-content-type-options", b"nosniff")


@dataclass
class Exchange:
    """One request. Times are seconds of the monotonic clock, ``stages`` are durations in seconds."""

    id: str
    started: float
    """When its first byte came, as far as the server under us says so."""
    stages: dict[str, float] = field(default_factory=dict)
    finished: float | None = None
    """When the model was done with it; what follows is the stage ``respond``."""
    batch: int | None = None
    status: int = 0
    """0 until the response has begun."""
    server_timing: str = ""
    due: float = math.inf
    """When the answer has to be there, once `deadline` was asked: the body has to be there by then, too."""
    bulk: bool = False
    """Whether it waits for everybody else, once `deadline` was asked."""
    gone: bool = False
    """Whether the client hung up before it was answered."""
    counted: bool = False
    """Whether the metrics have it."""
    trace: Trace | None = None
    """None unless the request is traced."""
    share: Share | None = None
    """What is held of its body; None before that is read."""
    served: Served | None = None
    """The model that it is for, in the version that it goes on with to its end; None before that is asked for."""

    def ask(self, context: Context, name: str | None = None) -> Served:
        """The model of that ``name``, the default without one: the first time as it is served now, then the same.

        Raises `NotReady`, `NotFound`. `leave` has to follow.
        """
        if self.served is None:
            self.served = context.served(name)
            self.served.uses += 1
        return self.served

    def leave(self) -> None:
        """Nothing more is wanted of the model."""
        if self.served is not None:
            self.served.uses -= 1
            self.served = None

    def deadline(self, request: Request, timeout_ms: float) -> float:
        """When the answer has to be there: ``timeout_ms`` after the first byte, or earlier if the client asks.

        Takes note of the request's priority as well. Raises `InvalidParameter` for a header that cannot be.
        """
        self.bulk = _is_bulk(request)
        asked = request.headers.get("x-request-timeout-ms")
        if asked is not None:
            timeout_ms = min(timeout_ms, positive(asked, "X-Request-Timeout-Ms (milliseconds)"))
        self.due = self.started + timeout_ms / 1000
        return self.due

    def note(self, stages: dict[str, float], answer: Answer) -> None:
        """One of its images is done. Of several, the last one to finish stands for the request."""
        if self.trace is not None:
            self.trace.images.append(Image(stages, answer.finished, answer.batch, answer.batch_size))
        if self.finished is None or answer.finished >= self.finished:
            self.stages.update(stages)
            self.finished, self.batch = answer.finished, answer.batch

    def timings(self) -> dict[str, float]:
        """Milliseconds for the answer's body; the same go into ``Server-Timing``."""
        milliseconds = {name: self.stages.get(name, 0.0) for name in ("decode", "queue", "inference")}
        milliseconds["total"] = time.monotonic() - self.started
        timings = {name: round(1000 * seconds, 3) for name, seconds in milliseconds.items()}
        self.server_timing = ", ".join(f"{name};dur={value}" for name, value in timings.items())
        return timings


def exchange_of(request: Request) -> Exchange:
    """The exchange that ``request`` belongs to."""
    exchange: Exchange = request.scope["exchange"]
    return exchange


class Envelope:
    """Around every route and all other middleware: request ids, timing, metrics, the access log, the end of a drain."""

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
        exchange = Exchange(_request_id(headers), scope.get("began") or time.monotonic())
        scope["exchange"], scope["context"] = exchange, self._context
        tracing = self._context.tracing
        scope["probe"] = PROBES.fullmatch(scope["path"]) is not None or scope["path"] in self._probes
        if tracing is not None and not _asked_by_machines(scope):
            exchange.trace = tracing.begin(scope, headers, exchange.started)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message["headers"], *self._headers(exchange)]
            elif not message.get("more_body"):
                self._count(scope, exchange)  # first: whoever has the answer finds it counted
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            exchange.status = _CLIENT_GONE
        except asyncio.CancelledError:
            # Either the hang-up came as the block of an `Admission` ended, or drain_timeout_ms is over.
            if exchange.gone:
                exchange.status = _CLIENT_GONE
            elif exchange.status:
                raise
            else:
                error = Draining("the service ended before the answer was there (drain_timeout_ms)")
                await respond(Request(scope), error)(scope, receive, send_with_headers)
        except Exception:
            # The border of a request: a defect is logged here, and answered without its innards.
            log.exception("request %s failed", exchange.id)
            if exchange.status:
                raise
            await respond(Request(scope), defect())(scope, receive, send_with_headers)
        finally:
            if exchange.share is not None:
                exchange.share.release()
            exchange.leave()
            self._count(scope, exchange)
            self._account(scope, exchange)

    def _headers(self, exchange: Exchange) -> list[tuple[bytes, bytes]]:
        headers = [(b"x-request-id", exchange.id.encode()), _NOSNIFF]
        if exchange.server_timing:
            headers.append((b"server-timing", exchange.server_timing.encode()))
        if self._context.draining:
            headers.append((b"connection", b"close"))
        return headers

    def _count(self, scope: Scope, exchange: Exchange) -> None:
        """Once for each request."""
        if exchange.counted:
            return
        exchange.counted = True
        route = _route(scope)
        self._context.metrics.requests.labels(route, str(exchange.status)).inc()
        self._context.metrics.request_duration.labels(route).observe(time.monotonic() - exchange.started)

    def _account(self, scope: Scope, exchange: Exchange) -> None:
        now = time.monotonic()
        duration = now - exchange.started
        route = _route(scope)
        metrics = self._context.metrics
        if exchange.finished is not None:
            exchange.stages["respond"] = now - exchange.finished
        for stage in exchange.stages.keys() & _STAGES_HERE:  # those of the images were observed with them
            metrics.stage_duration.labels(stage).observe(exchange.stages[stage])
        if exchange.trace is not None and self._context.tracing is not None:
            self._context.tracing.end(
                exchange.trace,
                request_id=exchange.id,
                route=route,
                status=exchange.status,
                stages=exchange.stages,
                started=exchange.started,
                now=now,
            )
        level = logging.DEBUG if _asked_by_machines(scope) else logging.INFO
        if log.isEnabledFor(level):
            extra = {"exchange": exchange, "duration": duration}
            log.log(level, "%s %s %d", scope["method"], scope["path"], exchange.status, extra=extra)


def _asked_by_machines(scope: Scope) -> bool:
    return scope["path"] != _FOR_PEOPLE and bool(scope["probe"])


def _is_bulk(request: Request) -> bool:
    """Whether the request waits for everybody else: by the header, or because its key or its route says so."""
    fixed = request.scope.get("bulk", False) or request.scope["path"] in _bulk_routes(request)
    return asks_for_bulk(request.headers.get(_PRIORITY, "interactive")) or fixed


def asks_for_bulk(priority: str) -> bool:
    """Whether a request's own ``priority`` is bulk. Raises `InvalidParameter` for a word that is none."""
    asked = priority.strip().lower()
    if asked not in _PRIORITIES:
        raise InvalidParameter(f"X-Priority must be {' or '.join(_PRIORITIES)}")
    return asked == "bulk"


def _bulk_routes(request: Request) -> list[str]:
    settings: Settings = request.scope["context"].settings
    return settings.listed_bulk_routes


def _request_id(headers: dict[bytes, bytes]) -> str:
    offered = headers.get(b"x-request-id", b"").decode("latin-1")
    if offered and _REQUEST_ID.fullmatch(offered):
        return offered
    return new_id()


def new_id() -> str:
    """A request's id: unique, not secret, so without a system call. The generator is seeded anew in every fork."""
    return f"{random.getrandbits(128):032x}"


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "unmatched")
