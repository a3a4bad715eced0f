"""What all engines together say of the load, from their arenas: arithmetic for the scrape.

What is offered and what is possible are summed over the engines of one model. The model that is nearest to its limit
speaks for the service: an autoscaler that follows it brings room to whoever lacks it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from service.engine.arena import Arena, Gauge
from service.engine.load import saturation
from service.observability.card import ModelCard
from service.observability.readings import Readings


class Source(NamedTuple):
    """An engine's arena, and the model that is served from it."""

    card: ModelCard
    arena: Arena
    asked: bool = True
    """Whether new images go there: not to a standby beside others, nor to a version that is kept or leaves."""


def readings(sources: Sequence[Source]) -> Readings:
    """The sum, the mean or the largest, as each is meant. Zeros without an engine."""
    if not sources:
        return Readings()

    def values(gauge: Gauge, chosen: Sequence[Source] = sources) -> list[float]:
        return [float(source.arena.gauges[gauge]) for source in chosen]

    asked = [source for source in sources if source.asked] or sources
    models: defaultdict[tuple[str, str], list[Source]] = defaultdict(list)
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
