"""The shadow's engine, and what front-ends report of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from service.options.devices import gpus, resolve
from service.settings import Settings
from service.shared.board import Board
from service.shared.shadow_tally import Tally
from service.supervisor.pool.engines import Engines
from service.supervisor.pool.room import Decision
from service.supervisor.pool.versions import Servable, called

log = logging.getLogger(__name__)


class Shadow:
    """Part of the `Pool`."""

    def __init__(self, pool: Engines, room_for: Callable[[Servable, Settings], Decision]) -> None:
        self._pool = pool
        self._room_for = room_for
        self._tally = Tally()

    @property
    def _servable(self) -> Servable | None:
        return next((servable for servable in self._pool.servables if servable.shadow), None)

    def of(self, settings: Settings, weights: str) -> Servable:
        """A model with other ``weights`` than the default one has, on the first of its devices."""
        device = resolve(settings.device, gpus)[0].name
        own = {"weights": weights, "device": device, "standby": False, "watch_weights_ms": 0.0}
        version = self._pool.new_version(settings.model_copy(update=own))
        return Servable(Board.shadow, version, shadow=True)

    def start(self) -> None:
        """When all others are there, and if there is memory for one more."""
        servable = self._servable
        if servable is None:
            return
        (seat, *_) = servable.current.seats
        if seat.engine or seat.closed:
            return
        decision = self._room_for(self._pool.servables[0], servable.current.settings)
        if decision.refusal:
            log.error("the shadow is not started: %s", decision.refusal)
            seat.closed = decision.refusal
        else:
            self._pool.start_version(servable.current)

    def hear(self, seen: Sequence[float]) -> None:
        """What a front-end has compared since it last said so."""
        if seen and any(seen):
            self._tally.add(int(seen[0]), int(seen[1]), *seen[2:])
            self._pool.tell()

    def to_json(self) -> dict[str, Any] | None:
        """For people; None without a shadow."""
        servable = self._servable
        if servable is None:
            return None
        (seat, *_) = servable.current.seats
        told = {"weights": called(seat.settings.weights), "state": seat.state, "reason": seat.closed}
        return {**told, **self._tally.to_json()}
