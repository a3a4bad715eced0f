"""The models that are served, and the versions of each: data that all decisions work on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from service.options.devices import Device
from service.settings import Settings
from service.supervisor.lifecycle.seat import Seat

Role = Literal["current", "coming", "kept", "leaving", "shadow"]


def called(weights: str) -> str:
    """The weights of the setting as clients may read of them: of a path, the last part."""
    return weights if "://" in weights else Path(weights).name or weights


class Model(NamedTuple):
    """One that is to be served. ``name`` is None for whatever its weights are called."""

    name: str | None
    settings: Settings
    devices: Sequence[Device]
    shadow: bool = False
    """Whether it answers nobody."""


@dataclass(eq=False)
class Version:
    """A model as it was loaded with ``settings``, on each of its devices. ``number`` is its own for ever."""

    number: int
    settings: Settings
    seats: list[Seat] = field(default_factory=list)
    awaited: set[int] = field(default_factory=set)
    """Of one that leaves: the front-ends that still have requests with it."""
    answered: bool = False
    """Whether it was ever the one that answers, so that somebody may wait for it."""
    until: float = math.inf
    """When one that is kept begins to leave, and one that leaves is not waited for any more."""

    @property
    def serving(self) -> list[Seat]:
        """Where an engine takes work."""
        return [seat for seat in self.seats if seat.serves]

    @property
    def complete(self) -> bool:
        """Whether every engine takes work."""
        return all(seat.serves for seat in self.seats)

    @property
    def gone(self) -> bool:
        """Whether no engine is left."""
        return all(seat.engine is None for seat in self.seats)

    @property
    def names(self) -> dict[str, str]:
        """What its ``model`` and its ``weights`` are called."""
        engines = [seat.engine for seat in self.seats if seat.engine is not None and seat.engine.names]
        if engines:
            return engines[0].names
        return {"model": self.settings.model, "weights": called(self.settings.weights)}


@dataclass(eq=False)
class Servable:
    """One of the models that requests may ask for."""

    place: int
    """On the `Board`."""
    current: Version
    """The one that answers."""
    name: str | None = None
    """What it is called whatever is loaded; None for the name that the weights have."""
    shadow: bool = False
    """Whether it answers nobody."""
    coming: Version | None = None
    """The one that is going to answer, if all goes well."""
    kept: Version | None = None
    """The one that answered before, for a rollback."""
    leaving: list[Version] = field(default_factory=list)
    """Those that finish what they have."""

    @property
    def called(self) -> str:
        """What the model that answers is called."""
        return self.name if self.name is not None else self.current.names["model"]

    @property
    def offered(self) -> list[Version]:
        """Those that front-ends should be joined to."""
        return [version for version in (self.current, self.coming, self.kept) if version is not None]

    @property
    def versions(self) -> list[Version]:
        return [*self.offered, *self.leaving]

    @property
    def was_ready(self) -> bool:
        """Whether the version that answers has ever done so."""
        return any(seat.was_ready for seat in self.current.seats)

    def role(self, version: Version) -> Role:
        """What ``version`` is to this model."""
        if version is self.current:
            return "current"
        if version is self.coming:
            return "coming"
        return "kept" if version is self.kept else "leaving"

    def others_serve(self, seat: Seat) -> bool:
        """Whether no answer depends on ``seat``: another device has the model, or it is the shadow's."""
        return self.shadow or any(other is not seat for other in self.current.serving)

    def to_json(self) -> list[dict[str, Any]]:
        """Every engine, for people."""
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
