"""The load of all engines together, from their arenas, for a scrape.

Arrivals and capacities are summed over the engines of one model. The service's saturation is that of the model nearest
to its limit, so that an autoscaler adds capacity for the model that lacks it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from service.engine.arena import Arena, Gauge
from service.engine.load import saturation
from service.observability.card import ModelCard
from service.observability.readings import Readings


class LoadSource(NamedTuple):
    """An engine's arena and its model."""

    card: ModelCard
    arena: Arena
    asked: bool = True
    """True if new images go there; False for a standby beside others, and for a version that does not answer."""


def readings(sources: Sequence[LoadSource]) -> Readings:
    """Combines the engines' gauges by sum, mean or maximum. All values are zero without an engine."""
    if not sources:
        return Readings()

    def values(gauge: Gauge, chosen: Sequence[LoadSource] = sources) -> list[float]:
        return [float(source.arena.gauges[gauge]) for source in chosen]

    asked = [source for source in sources if source.asked] or sources
    models: defaultdict[tuple[str, str], list[LoadSource]] = defaultdict(list)
    for source in asked:
        models[source.card.name, source.card.weights].append(source)
    full = [
        saturation(
            sum(values(Gauge.ARRIVALS, engines)),
            sum(values(Gauge.CAPACITY, engines)),
            max(values(Gauge.DECODE_CAPACITY, engines)),
            max(values(Gauge.DECODE_BUSY, engines)),
        )
        for engines in models.values()
    ]
    # Two engines on one device see the same memory.
    devices = {source.card.device: source for source in sources}
    memory = list(devices.values())
    return Readings(
        sum(values(Gauge.QUEUE_DEPTH)),
        float(sum(source.arena.geometry.slots - source.arena.free for source in sources)),
        max(full),
        sum(values(Gauge.BUSY_RATIO, asked)) / len(asked),
        sum(values(Gauge.MEMORY_USED, memory)),
        sum(values(Gauge.MEMORY_TOTAL, memory)),
    )
