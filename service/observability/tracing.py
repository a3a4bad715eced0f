"""Optional OpenTelemetry traces: a span for each request, its stages as children, sent by OTLP over HTTP.

    POST /predict                       from the first byte to the last of the answer; a child of the caller's span
      ├─ receive                        the body
      ├─ decode ── queue ── inference   of each image, with its batch's id and size

Tracing is off unless ``OTEL_EXPORTER_OTLP_ENDPOINT`` (or ``…_TRACES_ENDPOINT``) is set and the extra ``otel`` is
installed. While off it costs one comparison a request and imports nothing. The standard's other variables hold as well:
``OTEL_SERVICE_NAME``, ``OTEL_RESOURCE_ATTRIBUTES``, ``OTEL_TRACES_SAMPLER``, ``OTEL_PROPAGATORS``,
``OTEL_BSP_*``, ``OTEL_EXPORTER_OTLP_HEADERS`` (https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/).

The service measures its stages in any case. The spans are made of these times when the request has ended, so that the
engine contains no tracing and no time is measured twice. Sampled requests also become the histograms' exemplars
(`Exemplars`).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from service import __version__
from service.host.extras import install_command
from service.observability.exemplars import Exemplars
from service.observability.metrics import DURATIONS

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span
    from starlette.types import Scope

log = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_NAME = "imagenet-serve"
#: Seconds for sending the last spans when a front-end ends, so that an unreachable collector does not delay it.
_LAST_SPANS = 2.0


@dataclass(frozen=True)
class Image:
    """The times of one image in the engine, in seconds: ``finished`` on the monotonic clock, ``stages`` durations."""

    stages: Mapping[str, float]
    finished: float
    batch: int
    batch_size: int


@dataclass
class Trace:
    """The span of a running request and the times of its images."""

    span: Span
    images: list[Image] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The trace's id in hexadecimal, as the collector shows it."""
        return f"{self.span.get_span_context().trace_id:032x}"


def wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """True if the environment asks for traces."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    return environment.get("OTEL_TRACES_EXPORTER", "otlp") != "none" and any(map(environment.get, _ENDPOINTS))


def obstacle(environment: Mapping[str, str] = os.environ) -> str | None:
    """The reason why there are no traces although the environment asks for them, with the remedy; or None."""
    if not wanted(environment):
        return None
    if any(find_spec(f"opentelemetry{part}") is None for part in ("", ".sdk", ".exporter")):
        return (
            "an OTLP endpoint is set (OTEL_EXPORTER_OTLP_ENDPOINT), but OpenTelemetry's packages are not "
            f"installed, so nothing is traced; {install_command('otel')} installs them"
        )
    protocol = next(filter(None, map(environment.get, _PROTOCOLS)), "http/protobuf")
    if protocol != "http/protobuf":
        return (
            f"OTLP over {protocol} is not supported, so nothing is traced; set OTEL_EXPORTER_OTLP_PROTOCOL="
            "http/protobuf and the collector's port for it, usually 4318"
        )
    return None


class Tracing:
    """The tracer of one front-end and its exemplars. Used on the event loop; a thread of the SDK sends the spans."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("imagenet_serve", __version__)
        self._started = time.time_ns() - time.monotonic_ns()
        """The monotonic clock's zero in nanoseconds of the epoch: stages use that clock, spans need the epoch."""
        self.exemplars = Exemplars(DURATIONS)

    @classmethod
    def from_environment(cls) -> Tracing | None:
        """The tracer that the environment asks for; None if it asks for none or has an `obstacle`."""
        if not wanted() or obstacle():
            return None
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        attributes = {SERVICE_VERSION: __version__}
        if "OTEL_SERVICE_NAME" not in os.environ and "service.name=" not in os.environ.get(
            "OTEL_RESOURCE_ATTRIBUTES", ""
        ):
            attributes[SERVICE_NAME] = _NAME
        provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def begin(self, scope: Scope, headers: Mapping[bytes, bytes], started: float) -> Trace:
        """Starts the span of a request that arrived at ``started``, in seconds of the monotonic clock.

        The header ``traceparent`` names its parent.
        """
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}
        attributes = {
            "http.request.method": scope["method"],
            "url.path": scope["path"],
            "url.scheme": scope["scheme"],
        }
        span = self._tracer.start_span(
            scope["method"], extract(carrier), SpanKind.SERVER, attributes, start_time=self._at(started)
        )
        return Trace(span)

    def end(
        self, trace: Trace, *, request_id: str, route: str, status: int, stages: Mapping[str, float],
        started: float, now: float,
    ) -> None:  # fmt: skip
        """Ends the span of an answered request, with its stages as children, and hands them to the SDK."""
        from opentelemetry.trace import Status, StatusCode

        span = trace.span
        if span.is_recording():
            method = span.attributes["http.request.method"]
            span.update_name(f"{method} {route}")
            span.set_attribute("http.route", route)
            span.set_attribute("http.response.status_code", status)
            span.set_attribute("imagenet.request.id", request_id)
            if status >= 500:
                span.set_status(Status(StatusCode.ERROR))
            if "receive" in stages:
                self._child(trace, "receive", started, started + stages["receive"], {})
            for image in trace.images:
                self._image(trace, image)
            self._exemplify(trace, route, stages, now - started)
        span.end(self._at(now))

    def close(self) -> None:
        """Sends the last spans, for `_LAST_SPANS` seconds at most."""
        last = threading.Thread(target=self._provider.shutdown, daemon=True)
        last.start()
        last.join(_LAST_SPANS)

    def _image(self, trace: Trace, image: Image) -> None:
        """Makes the spans of an image's stages, which follow each other, backwards from the end of its batch."""
        attributes = {"imagenet.batch.id": image.batch, "imagenet.batch.size": image.batch_size}
        end = image.finished
        for stage in ("inference", "queue", "decode"):
            begin = end - image.stages[stage]
            self._child(trace, stage, begin, end, {} if stage == "decode" else attributes)
            end = begin

    def _child(self, trace: Trace, name: str, begin: float, end: float, attributes: dict[str, Any]) -> None:
        from opentelemetry.trace import set_span_in_context

        parent = set_span_in_context(trace.span)
        span = self._tracer.start_span(name, parent, attributes=attributes, start_time=self._at(begin))
        span.end(self._at(end))

    def _exemplify(self, trace: Trace, route: str, stages: Mapping[str, float], duration: float) -> None:
        context = trace.span.get_span_context()
        names = {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
        self.exemplars.record("imagenet_request_duration_seconds", route, duration, names)
        timed = [(stage, stages[stage]) for stage in ("receive", "respond") if stage in stages]
        timed += [pair for image in trace.images for pair in image.stages.items()]
        for stage, seconds in timed:
            self.exemplars.record("imagenet_stage_duration_seconds", stage, seconds, names)

    def _at(self, monotonic: float) -> int:
        return self._started + round(monotonic * 1e9)
