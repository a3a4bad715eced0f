"""The models that are served, by name, and the versions of each: data that the pool and its switches work on."""

from __future__ import annotations

from dataclasses import dataclass, field

from service.pool.seat import Seat
from service.settings import Settings


@dataclass(eq=False)
class Version:
    """A model as it was loaded with ``settings``, on each of its devices. ``number`` is its own for ever."""

    number: int
    settings: Settings
    seats: list[Seat] = field(default_factory=list)

    @property
    def serving(self) -> list[Seat]:
        """Where an engine takes work."""
        return [seat for seat in self.seats if seat.serves]


@dataclass(eq=False)
class Servable:
    """One of the models that requests may ask for."""

    place: int
    """On the `Board`."""
    current: Version
    name: str | None = None
    """What it is called whatever is loaded; None for the name that the weights have."""

    @property
    def versions(self) -> list[Version]:
        return [self.current]
