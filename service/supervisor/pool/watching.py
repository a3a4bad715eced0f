"""Watches weights on disk, so that changed ones are loaded (watch_weights_ms)."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from service.supervisor.lifecycle.versions import Servable
from service.supervisor.pool.watch import SignatureWatch, signature_of

log = logging.getLogger(__name__)


@dataclass
class _Watched:
    watch: SignatureWatch
    weights: str
    due_at: float
    """The time of the next look."""


class Watching:
    """Remembers the signatures of each model's weights."""

    def __init__(self) -> None:
        self._watched: dict[int, _Watched] = {}
        """The watched weights by the model's place."""

    def has_changed(self, servable: Servable, now: float) -> bool:
        """True if the weights of ``servable`` have changed completely. Looks every ``watch_weights_ms``."""
        settings = servable.current.settings
        watched = self._watched.get(servable.place)
        due = watched is None or now >= watched.due_at
        if not settings.watch_weights_ms or not due or not servable.current.serving:
            return False
        again = now + settings.watch_weights_ms / 1000
        seen = signature_of(settings.weights)
        if watched is None or watched.weights != settings.weights:
            self._watched[servable.place] = _Watched(SignatureWatch(seen), settings.weights, again)
            return False
        watched.due_at = again
        if not watched.watch.changed(seen):
            return False
        log.info("weights %s have changed", settings.weights)
        return True
