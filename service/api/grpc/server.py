"""The Open Inference Protocol's service over gRPC: the same admission, deadlines, keys, metrics and drain as `/v2`.

    ServerLive · ServerReady · ModelReady · ServerMetadata · ModelMetadata · ModelInfer
    grpc.health.v1.Health (Check, Watch) · server reflection

Every front-end listens on the same port (SO_REUSEPORT), so the kernel distributes the connections. `_CODES` maps an
error's HTTP status to gRPC's. The metrics count the HTTP status, so that one dashboard shows both protocols.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from service import __version__
from service.api import body, open_inference
from service.api.admission import Admission
from service.api.context import Context
from service.api.errors import defect, status_of
from service.api.grpc import messages, schema
from service.api.inference import in_a_thread
from service.api.keys import Keys
from service.api.request_state import RequestState, asks_for_bulk, new_id
from service.errors import DeadlineExceeded, NotReady, Overloaded, ServiceError, Unauthorized, Unavailable
from service.settings import Settings

log = logging.getLogger("service.access")

#: gRPC's status codes by HTTP status; any other is INTERNAL.
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
#: nginx's status for a client that disconnected, as in HTTP's access log.
_CLIENT_GONE = 499
#: Metadata that say when to try again: for clients with a retry policy (gRPC proposal A6), and for all others.
_PUSHBACK, _RETRY_AFTER = "grpc-retry-pushback-ms", "retry-after"
#: The largest number of concurrent calls of one front-end; each holds its message in memory.
_CALLS = 256
#: The largest number of values that are encoded on the event loop; for so few, a thread would take longer to start.
_SMALL = 4096
_HEALTH = "grpc.health.v1.Health"
#: Seconds between two checks of the state for `Health.Watch`.
_WATCH = 0.5
#: Methods that need no key, since orchestrators have none.
_OPEN = frozenset({f"/{schema.SERVICE}/ServerLive", f"/{schema.SERVICE}/ServerReady"})

Handler = Callable[[Any, "GrpcCall"], Awaitable[Any]]


class GrpcCall:
    """The state of one call: its `RequestState`, and gRPC's own context."""

    def __init__(self, settings: Settings, grpc_context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self.grpc = grpc_context
        self.metadata = {key.lower(): value for key, value in grpc_context.invocation_metadata() or ()}
        self.state = RequestState(new_id(), time.monotonic())
        left = grpc_context.time_remaining()
        longest = settings.request_timeout_ms / 1000
        self.state.due = self.state.started + (longest if left is None else min(left, longest))


class GrpcServer:
    """The gRPC server of one front-end. Construct it on the event loop, then `start` and `stop` it."""

    def __init__(self, context: Context, keys: Keys | None, port: int) -> None:
        settings = context.settings
        self._context = context
        self._keys = keys
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", settings.max_upload_bytes + body.ENVELOPE),
                ("grpc.max_send_message_length", -1),
            ],
            maximum_concurrent_rpcs=_CALLS,
        )
        self._server.add_generic_rpc_handlers((self._inference(), self._health()))
        names = (schema.SERVICE, _HEALTH, reflection.SERVICE_NAME)
        for known in (health_pb2, reflection_pb2):  # so that reflection can describe them too
            schema.POOL.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
        reflection.enable_server_reflection(names, self._server, pool=schema.POOL)
        self.port: int = self._listen(f"{_bracketed(settings.host)}:{port}", settings)
        """The port that it listens on; a free one if 0 was asked for."""

    async def start(self) -> None:
        """Begins to take calls. Before the model is ready they get UNAVAILABLE."""
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Takes no new calls and gives running ones ``grace`` seconds."""
        await self._server.stop(grace)

    def _listen(self, address: str, settings: Settings) -> int:
        if settings.tls_certificate_file is None or settings.tls_key_file is None:
            return int(self._server.add_insecure_port(address))
        pair = _Pair(settings.tls_certificate_file, settings.tls_key_file)
        credentials = grpc.dynamic_ssl_server_credentials(pair.read(), pair.read_again)
        return int(self._server.add_secure_port(address, credentials))

    def _inference(self) -> grpc.GenericRpcHandler[Any, Any]:
        handlers = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
        }
        return grpc.method_handlers_generic_handler(
            schema.SERVICE,
            {
                name: grpc.unary_unary_rpc_method_handler(
                    partial(self._serve, f"/{schema.SERVICE}/{name}", handler),
                    request_deserializer=schema.message(f"{name}Request").FromString,
                    response_serializer=schema.message(f"{name}Response").SerializeToString,
                )
                for name, handler in handlers.items()
            },
        )

    def _health(self) -> grpc.GenericRpcHandler[Any, Any]:
        coding: dict[str, Any] = {
            "request_deserializer": health_pb2.HealthCheckRequest.FromString,
            "response_serializer": health_pb2.HealthCheckResponse.SerializeToString,
        }
        return grpc.method_handlers_generic_handler(
            _HEALTH,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self._check, **coding),
                "Watch": grpc.unary_stream_rpc_method_handler(self._watch, **coding),
            },
        )

    async def _serve(
        self, route: str, handler: Handler, request: Any, grpc_context: grpc.aio.ServicerContext[Any, Any]
    ) -> Any:
        """Runs ``handler`` for a call: checks the key, counts and logs, and turns errors into gRPC's statuses."""
        call = GrpcCall(self._context.settings, grpc_context)
        call.state.status = 200
        try:
            self._admit(route, call)
            return await handler(request, call)
        except ServiceError as error:
            call.state.status = status_of(error)
            self._count_error(error)
            await _abort(call, error)
        except asyncio.CancelledError:
            call.state.status = _CLIENT_GONE
            raise
        except Exception:
            log.exception("call %s failed", call.state.id)
            call.state.status = 500
            await _abort(call, defect())
        finally:
            call.state.leave()
            self._account(route, call.state)

    def _admit(self, route: str, call: GrpcCall) -> None:
        call.state.bulk = asks_for_bulk(str(call.metadata.get("x-priority", "interactive")))
        if self._keys is None or route in _OPEN:
            return
        scheme, _, key = str(call.metadata.get("authorization", "")).partition(" ")
        offered = key.strip() if scheme.lower() == "bearer" else str(call.metadata.get("x-api-key", ""))
        if not self._keys.admit(offered.encode()):
            raise Unauthorized(
                "this service needs an API key: send the metadata authorization: Bearer KEY, or x-api-key"
            )
        call.state.bulk |= self._keys.is_bulk(offered.encode())

    def _count_error(self, error: ServiceError) -> None:
        metrics = self._context.metrics
        if isinstance(error, DeadlineExceeded):
            metrics.expired.inc()
        elif isinstance(error, Unavailable | Unauthorized):
            metrics.rejected.labels(error.code).inc()

    def _account(self, route: str, state: RequestState) -> None:
        duration = time.monotonic() - state.started
        metrics = self._context.metrics
        metrics.requests.labels(route, str(state.status)).inc()
        metrics.request_duration.labels(route).observe(duration)
        if "receive" in state.stages:
            metrics.stage_duration.labels("receive").observe(state.stages["receive"])
        level = logging.DEBUG if route in _OPEN else logging.INFO
        if log.isEnabledFor(level):
            extra = {"request_state": state, "duration": duration}
            log.log(level, "%s %s %d", "GRPC", route, state.status, extra=extra)

    # The protocol's methods

    async def _server_live(self, request: Any, call: GrpcCall) -> Any:
        return schema.message("ServerLiveResponse")(live=True)

    async def _server_ready(self, request: Any, call: GrpcCall) -> Any:
        return schema.message("ServerReadyResponse")(ready=self._is_ready())

    async def _model_ready(self, request: Any, call: GrpcCall) -> Any:
        open_inference.named(self._context, request.name, request.version or open_inference.VERSION)
        return schema.message("ModelReadyResponse")(ready=self._is_ready())

    async def _server_metadata(self, request: Any, call: GrpcCall) -> Any:
        return schema.message("ServerMetadataResponse")(
            name="imagenet-serve", version=__version__, extensions=["classification"]
        )

    async def _model_metadata(self, request: Any, call: GrpcCall) -> Any:
        card = open_inference.named(self._context, request.name, request.version or open_inference.VERSION)
        return schema.message("ModelMetadataResponse")(**open_inference.described(card))

    async def _model_infer(self, request: Any, call: GrpcCall) -> Any:
        context = self._context
        admission = Admission(context, call.state, request.model_name)
        model = open_inference.check_asked(admission.served, request.model_version or open_inference.VERSION)
        async with admission:
            asked, given = messages.parse(request)
            open_inference.check_outputs(asked, len(model.classes))
            works = open_inference.works_of(context, admission.served, given)
            admission.received()
            admission.deadline = open_inference.deadline_of(asked, admission)
            logits = await admission.logits(works)
        head = {"model_name": model.name, "model_version": open_inference.VERSION, "id": asked.id or ""}
        raw = bool(request.raw_input_contents)

        def answer() -> Any:
            return messages.response(head, open_inference.outputs_of(asked, logits, model), raw)

        return answer() if logits.size <= _SMALL else await in_a_thread(context, answer, admission.deadline)

    # The standard health service

    def _is_ready(self) -> bool:
        try:
            self._context.check_ready()
        except Unavailable:
            return False
        return True

    async def _check(self, request: Any, grpc_context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        if request.service not in ("", schema.SERVICE):
            await grpc_context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return self._serving()

    async def _watch(self, request: Any, grpc_context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        known = request.service in ("", schema.SERVICE)
        last: Any = None
        while True:
            current = self._serving() if known else _unknown_service()
            if current != last:
                last = current
                yield current
            await asyncio.sleep(_WATCH)

    def _serving(self) -> Any:
        states = health_pb2.HealthCheckResponse
        return states(status=states.SERVING if self._is_ready() else states.NOT_SERVING)


class _Pair:
    """The certificate and its key, read again for new connections when the files change."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (key, certificate)
        self._last: tuple[bytes, ...] = ()

    def read(self) -> Any:
        key, certificate = self._last = tuple(path.read_bytes() for path in self._files)
        return grpc.ssl_server_certificate_configuration([(key, certificate)])

    def read_again(self) -> Any:
        """The new pair; None if the files have not changed or cannot be read, so that the last pair stays."""
        last = self._last
        try:
            configuration = self.read()
        except OSError:
            return None
        return None if self._last == last else configuration


def _unknown_service() -> Any:
    return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)


async def _abort(call: GrpcCall, error: ServiceError) -> None:
    """Ends the call with the error's status and, if another try may succeed, the time to wait."""
    code = _CODES.get(status_of(error), grpc.StatusCode.INTERNAL)
    metadata: list[tuple[str, str]] = [("x-request-id", call.state.id)]
    if isinstance(error, Overloaded):
        metadata += [
            (_PUSHBACK, str(round(1000 * error.retry_after))),
            (_RETRY_AFTER, str(max(1, round(error.retry_after)))),
        ]
    elif isinstance(error, NotReady):
        metadata.append((_PUSHBACK, "1000"))
    await call.grpc.abort(code, str(error), tuple(metadata))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
