"""The values that a scrape reads at its moment: the service's state, the engines' load, the processes' usage.

prometheus_client is imported late: see `service.observability.metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

from service.host.usage import Usage, by_process
from service.observability.card import ModelCard
from service.observability.readings import Readings
from service.observability.version import build_information
from service.shared.status import State

if TYPE_CHECKING:
    from prometheus_client.core import Metric

STATES = get_args(State)
ENGINE_STATES = ("waiting", "loading", "serving", "standby", "ending", "ended", "given up")

#: The label names of a family, and its samples: the labels' values and the number.
_Labels = Sequence[str]
_Samples = Iterable[tuple[Sequence[str], float]]


@dataclass(eq=False)
class Snapshot:
    """The gauges at the moment of a scrape; a prometheus_client collector."""

    state: str
    restarts: int
    frontend_restarts: int
    engine_up: bool
    readings: Readings
    """Sums over all engines."""
    cards: Sequence[ModelCard]
    """The answering models, the default one first."""
    supervisor: int | None = None
    """The pid of the root of the service's process tree, whose usage is measured."""
    switches: Mapping[str, int] = field(default_factory=dict)
    """The number of ended changes of a model, by outcome."""
    engines: Sequence[str] = ()
    """The states of the answering models' engines."""

    def collect(self) -> Iterable[Metric]:
        """Yields the families; prometheus_client calls it at a scrape."""
        yield _plain_gauge("engine_up", "1 while the engine takes work.", self.engine_up)
        text = "Engines that were started in place of a dead one."
        yield _counter("engine_restarts", text, (), [((), self.restarts)])
        text = "Front-ends that were started in place of a dead one."
        yield _counter("frontend_restarts", text, (), [((), self.frontend_restarts)])
        engines = [((name,), self.engines.count(name)) for name in ENGINE_STATES]
        yield _gauge("engines", "Engines of the models that answer, by state.", ("state",), engines)
        switches = [((outcome,), count) for outcome, count in self.switches.items()]
        text = "Changes of a model's version that ended, by outcome."
        yield _counter("switches", text, ("outcome",), switches)
        states = [((name,), name == self.state) for name in STATES]
        yield _gauge("state", "1 for the state that the service is in.", ("state",), states)
        yield from _load(self.readings)
        if self.cards:
            yield _model_info(self.cards)
            yield _fallbacks(self.cards)
        build = build_information()
        yield _gauge("build_info", "What is running; always 1.", list(build), [(list(build.values()), 1)])
        if self.supervisor is not None:
            yield from _process_usage(by_process(self.supervisor))


def _load(seen: Readings) -> Iterable[Metric]:
    yield _plain_gauge("queue_depth", "Images that wait for the device.", seen.queue_depth)
    yield _plain_gauge("in_flight_requests", "Images admitted and not yet answered.", seen.in_flight)
    text = "Arrivals over the capacity of the narrower side, device or decoding."
    yield _plain_gauge("saturation_ratio", text, seen.saturation)
    yield _plain_gauge("engine_busy_ratio", "Share of time the device computes.", seen.busy_ratio)
    if seen.memory_total:
        memory = [(("used",), seen.memory_used), (("total",), seen.memory_total)]
        text = "The device's memory, used by anyone, and in all."
        yield _gauge("gpu_memory_bytes", text, ("kind",), memory)


def _model_info(cards: Sequence[ModelCard]) -> Metric:
    names = ("name", "family", "weights", "sha256", "precision", "device", "runtime")
    infos = [([str(getattr(card, name) or "") for name in names], 1) for card in cards]
    return _gauge("model_info", "A model that answers; always 1.", names, infos)


def _fallbacks(cards: Sequence[ModelCard]) -> Metric:
    told = dict.fromkeys(told for card in cards for told in card.fallbacks)
    text = "Something optional that the service goes on without; always 1."
    return _gauge("fallback_info", text, ("what", "why"), [(fallback, 1) for fallback in told])


def _process_usage(usage: Mapping[str, Usage]) -> Iterable[Metric]:
    named = [((name,), used) for name, used in sorted(usage.items())]
    label = ("process",)
    text = "User and system time, by kind of process."
    yield _counter("process_cpu_seconds", text, label, [(name, used.cpu_seconds) for name, used in named])
    text = "Resident memory, by kind of process; what is shared counts in each."
    resident = [(name, used.resident_bytes) for name, used in named]
    yield _gauge("process_resident_memory_bytes", text, label, resident)
    files = [(name, used.open_files) for name, used in named]
    yield _gauge("process_open_fds", "Open descriptors, by kind of process.", label, files)


def _plain_gauge(name: str, text: str, value: float) -> Metric:
    """A gauge without labels."""
    return _gauge(name, text, (), [((), value)])


def _gauge(name: str, text: str, labels: _Labels, samples: _Samples) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(f"imagenet_{name}", text, labels=labels)
    for values, number in samples:
        family.add_metric(list(values), float(number))
    return family


def _counter(name: str, text: str, labels: _Labels, samples: _Samples) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(f"imagenet_{name}", text, labels=labels)
    for values, number in samples:
        family.add_metric(list(values), float(number))
    return family
