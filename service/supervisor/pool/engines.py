"""The engines that there are, by model and device: found, started, joined to front-ends.

Parts of the pool work on this; `Pool` puts them together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from typing import Any

from service.engine import process as engine
from service.options.devices import gpus, resolve
from service.settings import Settings
from service.shared.board import Board
from service.supervisor.child import Child
from service.supervisor.pool.host import Host
from service.supervisor.pool.seat import Seat, Serving
from service.supervisor.pool.versions import Servable, Version


class Engines(ABC):
    """The models, their versions and the engines of each; what follows from events is the `Pool`'s."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.board = Board()
        self.servables: list[Servable] = []
        self.was_ready = False
        """Whether all models have been served at a time."""
        self._versions = 0
        self._engines = 0
        self._names = 0

    # What follows

    @abstractmethod
    def spoke(self, child: Child, message: dict[str, Any], descriptors: list[int]) -> None:
        """An engine has said something."""

    @abstractmethod
    def ended(self, child: Child) -> None:
        """An engine has ended, well or not."""

    @abstractmethod
    def room_made(self) -> None:
        """The last version that was leaving has ended."""

    @abstractmethod
    def tell(self) -> None:
        """Every front-end hears of the engines and of the change that is under way."""

    @abstractmethod
    def look(self) -> None:
        """The service is ready, if every model is served now."""

    # What there is

    @property
    def asked(self) -> list[Servable]:
        """The models that requests may ask for, the default first."""
        return [servable for servable in self.servables if not servable.shadow]

    def __iter__(self) -> Iterator[tuple[Servable, Version, Seat]]:
        for servable in self.servables:
            for version in servable.versions:
                for seat in version.seats:
                    yield servable, version, seat

    def children(self) -> list[Child]:
        """Every engine that runs."""
        return [seat.child for _, _, seat in self if seat.child is not None]

    def resources(self) -> list[Serving]:
        """What the supervisor holds of engines, and no forked process may keep alive."""
        return [seat.serving for _, _, seat in self if seat.serving is not None]

    def patience(self, child: Child, silence: float) -> float:
        """Seconds that ``child`` may say nothing; ``silence`` for whoever is no engine."""
        found = self.find(child)
        return found[2].patience(silence) if found else silence

    def find(self, child: Child) -> tuple[Servable, Version, Seat] | None:
        """Which engine ``child`` is."""
        return next((found for found in self if found[2].child is child), None)

    @property
    def several(self) -> bool:
        """Whether there has been more than one engine that is not another's successor."""
        return self._names > 1

    @property
    def draining(self) -> bool:
        return self.host.status.state == "draining"

    def new_version(self, settings: Settings) -> Version:
        """One more, of which nothing is started yet."""
        self._versions += 1
        version = Version(self._versions, settings)
        devices = resolve(settings.device, gpus)
        capacity = settings.queue_capacity
        if capacity != "auto":  # what the setting says is for all of them
            capacity = -(-capacity // len(devices))
        for device in devices:
            self._names += 1
            name = "engine" if self._names == 1 else f"engine-{self._names}"
            own = {"device": device.setting, "queue_capacity": capacity}
            version.seats.append(Seat(name, device, settings.model_copy(update=own)))
        if settings.standby and self.host.processes:  # a thread is not killed
            self._names += 1
            first = version.seats[0]
            version.seats.append(Seat(f"engine-{self._names}", first.place, first.settings, standby=True))
        return version

    # Starting

    def start_version(self, version: Version) -> None:
        """Starts its engines: one finds and converts the weights, and the others then have them ready."""
        self.start_seat(version.seats[0])

    def start_others(self, servable: Servable, version: Version, standby: bool = False) -> None:
        """Starts those that have waited; a ``standby`` only when there is nobody whose start it would delay."""
        if version in servable.leaving or self.draining or self.host.over:
            return
        for seat in version.seats:
            if not seat.engine and (standby or not seat.standby):
                self.start_seat(seat)

    def start_seat(self, seat: Seat) -> None:
        """Starts an engine there."""
        self._engines += 1
        several = seat.place.visible or seat.place.share[1] > 1
        main = partial(
            engine.main,
            seat.settings,
            given_up=tuple(seat.given_up),
            name=seat.name,
            device=seat.place if several and self.host.processes else None,
            standby=seat.standby,
            shadow=any(one.shadow and seat in one.current.seats for one in self.servables),
        )
        seat.begin(self._engines, self.host.spawn(seat.name, main))
        assert seat.child is not None
        self.host.watch(seat.child, self.spoke, self.ended)

    def introduce(self, front_end: Child) -> None:
        """Joins ``front_end`` to every engine that takes work and that it has not found to."""
        for servable in self.servables:
            for version in servable.offered:
                for seat in version.seats:
                    if seat.serving is not None and seat.engine not in front_end.joined:
                        self.join(front_end, servable, version, seat)

    def join(self, front_end: Child, servable: Servable, version: Version, seat: Seat) -> None:
        """Joins ``front_end`` to one engine."""
        told = {"model": servable.place, "name": servable.name, "version": version.number}
        seat.introduce(front_end, told)

    def missing(self, joined: set[int]) -> bool:
        """Whether an engine takes work that is not among those that a front-end is ``joined`` to."""
        return any(
            seat.serving is not None and seat.engine not in joined
            for servable in self.servables
            for version in servable.offered
            for seat in version.seats
        )

    def names(self, leave_out: Servable) -> set[str]:
        """What the other models are called."""
        return {servable.called for servable in self.asked if servable is not leave_out}

    def measure_again(self) -> None:
        """Engines see how much memory there is for pictures, now that another has ended."""
        for servable in self.servables:
            for seat in servable.current.serving:
                if seat.child is not None:
                    seat.child.channel.send("measure")
