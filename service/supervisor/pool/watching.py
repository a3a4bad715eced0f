"""Weights on disk that are loaded by themselves when they have changed (watch_weights_ms)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from service.supervisor.pool.versions import Servable
from service.supervisor.pool.watch import Watch, look_at

if TYPE_CHECKING:
    from service.supervisor.pool.changes import Changes

log = logging.getLogger(__name__)


def look(changes: Changes, servable: Servable, now: float) -> None:
    """Loads the weights of ``servable`` again, if it is time to look and whoever has changed them is done."""
    settings = servable.current.settings
    due = settings.watch_weights_ms and now >= servable.look_at
    if not due or changes.under_way or not servable.current.serving:
        return
    servable.look_at = now + settings.watch_weights_ms / 1000
    seen = look_at(settings.weights)
    if servable.watch is None or servable.watched != settings.weights:
        servable.watch, servable.watched = Watch(seen), settings.weights
    elif servable.watch.changed(seen):
        log.info("weights %s have changed", settings.weights)
        changes.reload(servable)
