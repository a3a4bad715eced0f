"""Weights on disk that are loaded by themselves when they have changed (watch_weights_ms)."""

from __future__ import annotations

import logging

from service.supervisor.pool.versions import Servable
from service.supervisor.pool.watch import Watch, look_at

log = logging.getLogger(__name__)


def have_changed(servable: Servable, now: float) -> bool:
    """Looks at the weights of ``servable``, if it is time to: whether somebody has changed them and is done."""
    settings = servable.current.settings
    due = settings.watch_weights_ms and now >= servable.look_at
    if not due or not servable.current.serving:
        return False
    servable.look_at = now + settings.watch_weights_ms / 1000
    seen = look_at(settings.weights)
    if servable.watch is None or servable.watched != settings.weights:
        servable.watch, servable.watched = Watch(seen), settings.weights
    elif servable.watch.changed(seen):
        log.info("weights %s have changed", settings.weights)
        return True
    return False
