"""The load figures of a scrape. `service.engine.readings` reads them from the engines' arenas."""

from __future__ import annotations

from typing import NamedTuple


class Readings(NamedTuple):
    """Sums over all engines: images, shares of 1, and bytes. All are zero without an engine."""

    queue_depth: float = 0.0
    in_flight: float = 0.0
    saturation: float = 0.0
    busy_ratio: float = 0.0
    memory_used: float = 0.0
    memory_total: float = 0.0
