"""The served models and their versions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from service.options.devices import EngineDevice
from service.settings import Settings
from service.supervisor.lifecycle.seat import Seat

Role = Literal["current", "coming", "kept", "leaving", "shadow"]


def called(weights: str) -> str:
    """The name of the weights for clients: the setting, but of a path only the last part."""
    return weights if "://" in weights else Path(weights).name or weights


class Model(NamedTuple):
    """A model to serve. ``name`` is None if it is called what its weights are called."""

    name: str | None
    settings: Settings
    devices: Sequence[EngineDevice]
    shadow: bool = False
    """True if its answers go to no client."""


@dataclass(eq=False)
class ModelVersion:
    """A model as it was loaded with ``settings``, on each of its devices. Its ``number`` is unique."""

    number: int
    settings: Settings
    seats: list[Seat] = field(default_factory=list)
    awaited: set[int] = field(default_factory=set)
    """The front-ends that still have requests with a leaving version."""
    answered: bool = False
    """True if it has ever been the one that answers, so that requests may wait for it."""
    until: float = math.inf
    """The time until which it is kept for a rollback, or has to end once it leaves."""

    @property
    def serving(self) -> list[Seat]:
        """The seats whose engines take work."""
        return [seat for seat in self.seats if seat.serves]

    @property
    def complete(self) -> bool:
        """True if every seat's engine takes work."""
        return all(seat.serves for seat in self.seats)

    @property
    def gone(self) -> bool:
        """True if it has no engine any more."""
        return all(seat.engine is None for seat in self.seats)

    @property
    def names(self) -> dict[str, str]:
        """The names of its ``model`` and its ``weights``."""
        engines = [seat.engine for seat in self.seats if seat.engine is not None and seat.engine.names]
        if engines:
            return engines[0].names
        return {"model": self.settings.model, "weights": called(self.settings.weights)}


@dataclass(eq=False)
class Servable:
    """A served model with its versions."""

    place: int
    """The model's place on the `Board`."""
    current: ModelVersion
    """The version that answers."""
    name: str | None = None
    """The fixed name; None if it is called what its weights are called."""
    shadow: bool = False
    """True if its answers go to no client."""
    coming: ModelVersion | None = None
    """The version that is being loaded."""
    kept: ModelVersion | None = None
    """The previous version, kept for a rollback."""
    leaving: list[ModelVersion] = field(default_factory=list)
    """The versions that finish their requests and end."""

    @property
    def called(self) -> str:
        """The name under which clients ask for it."""
        return self.name if self.name is not None else self.current.names["model"]

    @property
    def offered(self) -> list[ModelVersion]:
        """The versions to which front-ends should be connected."""
        return [version for version in (self.current, self.coming, self.kept) if version is not None]

    @property
    def versions(self) -> list[ModelVersion]:
        return [*self.offered, *self.leaving]

    @property
    def was_ready(self) -> bool:
        """True if an engine of the current version has ever been ready."""
        return any(seat.was_ready for seat in self.current.seats)

    def role(self, version: ModelVersion) -> Role:
        """The role of ``version`` for this model."""
        if version is self.current:
            return "current"
        if version is self.coming:
            return "coming"
        return "kept" if version is self.kept else "leaving"

    def others_serve(self, seat: Seat) -> bool:
        """True if no answer depends on ``seat``: another one serves the current version, or it is the shadow's."""
        return self.shadow or any(other is not seat for other in self.current.serving)

    def to_json(self) -> list[dict[str, Any]]:
        """All engines, as ``/healthz`` shows them."""
        return [
            {
                "model": self.name or version.settings.model,
                "weights": called(version.settings.weights),
                "version": version.number,
                "role": "shadow" if self.shadow else self.role(version),
                "device": seat.device.name,
                "state": seat.state,
            }
            for version in self.versions
            for seat in version.seats
        ]
