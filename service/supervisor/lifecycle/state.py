"""The data of the supervisor's decisions, and the elementary steps of them.

A step adds to ``actions`` and does nothing itself. The time is that of the event.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from service.options.devices import EngineDevice
from service.settings import Settings
from service.shared.board import Board
from service.shared.shadow_tally import ShadowTally
from service.shared.status import State as Word
from service.shared.status import Status
from service.supervisor.lifecycle.actions import (
    Action,
    Kill,
    LinkFrontEnd,
    Log,
    Send,
    Show,
    StartEngine,
    StartFrontEnd,
)
from service.supervisor.lifecycle.change import Change
from service.supervisor.lifecycle.parts import Engine, FrontEnd, Part
from service.supervisor.lifecycle.seat import Seat
from service.supervisor.lifecycle.versions import Model, ModelVersion, Servable

#: The phases of a start, whose durations the status shows.
_START = ("starting", "loading", "warming")


class State:
    """The data of one service, shared by `Lifecycle` and its parts."""

    def __init__(self, models: Sequence[Model], *, processes: bool) -> None:
        """``processes`` says whether parts can be killed and replaced."""
        self.processes = processes
        self.now = 0.0
        """The time of the event, in seconds."""
        self.url = ""
        self.actions: list[Action] = []
        self.status = Status()
        self.exit_code: int | None = None
        """The exit code once it is decided; then nothing is started any more."""
        self.lost = False
        """True if requests were lost, which makes the exit code 1."""
        self.giving_up = False
        """True if the service ends after waiting requests have got an error."""
        self.was_ready = False
        """True once all models have been served at the same time."""
        self.tally = ShadowTally()
        """The comparison with the shadow."""
        self.change: Change | None = None
        """The running change of a version."""
        self.last_change: dict[str, Any] | None = None
        """The outcome of the last change, as ``/healthz`` shows it."""
        self.front_ends: dict[int, FrontEnd] = {}
        self._parts = self._versions = self._names = 0
        self._phase_began = 0.0
        self._told: dict[str, Any] = {}
        self.servables = [
            Servable(
                Board.shadow if model.shadow else place,
                self.new_version(model.settings, model.devices),
                model.name,
                model.shadow,
            )
            for place, model in enumerate(models)
        ]

    def begin(self, url: str) -> None:
        """Notes the service's ``url`` and the beginning of its start."""
        self.url, self._phase_began = url, self.now
        for servable in self.servables:
            servable.current.answered = True
            self.do(Show(servable.place, servable.current.number))

    # What there is

    @property
    def draining(self) -> bool:
        return self.status.state == "draining"

    @property
    def asked(self) -> list[Servable]:
        """The models that requests may ask for, the default first."""
        return [servable for servable in self.servables if not servable.shadow]

    @property
    def shadow(self) -> Servable | None:
        return next((servable for servable in self.servables if servable.shadow), None)

    @property
    def seats(self) -> Iterator[tuple[Servable, ModelVersion, Seat]]:
        for servable in self.servables:
            for version in servable.versions:
                for seat in version.seats:
                    yield servable, version, seat

    @property
    def engines(self) -> dict[int, tuple[Servable, ModelVersion, Seat]]:
        """The running engines by number."""
        return {found[2].engine.number: found for found in self.seats if found[2].engine is not None}

    @property
    def parts(self) -> dict[int, Part]:
        """All running parts by number."""
        engines = [seat.engine for _, _, seat in self.seats if seat.engine is not None]
        return {part.number: part for part in [*self.front_ends.values(), *engines]}

    def patience(self, part: Part, silence: float) -> float:
        """Seconds for which ``part`` may be silent: ``silence``, but more for an engine that loads."""
        found = self.engines.get(part.number)
        return found[2].patience(silence) if found else silence

    def new_part(self) -> int:
        """The number of a new part."""
        self._parts += 1
        return self._parts

    def new_version(self, settings: Settings, devices: Sequence[EngineDevice]) -> ModelVersion:
        """A new version, of which nothing is started yet."""
        self._versions += 1
        version = ModelVersion(self._versions, settings)
        capacity = settings.queue_capacity
        if capacity != "auto":  # the setting is the sum over all engines
            capacity = -(-capacity // len(devices))
        for device in devices:
            own = {"device": device.setting, "queue_capacity": capacity}
            version.seats.append(Seat(self._name(), device, settings.model_copy(update=own)))
        if settings.standby and self.processes:  # a thread cannot be killed, so a standby would be of no use
            first = version.seats[0]
            version.seats.append(Seat(self._name(), first.device, first.settings, standby=True))
        return version

    def _name(self) -> str:
        self._names += 1
        return "engine" if self._names == 1 else f"engine-{self._names}"

    def where(self, seat: Seat) -> str:
        """The seat's name and device for a log line; empty while the service has one seat."""
        return f" ({seat.name}, {seat.device.name})" if self._names > 1 else ""

    # What is to be done

    def do(self, action: Action) -> None:
        self.actions.append(action)

    def log(self, line: str, level: int = logging.INFO) -> None:
        """Logs a line."""
        self.do(Log(level, line))

    def send(self, part: int, kind: str, **fields: Any) -> None:
        """Sends a message, unless ``part`` has ended."""
        if part in self.parts:
            self.do(Send(part, kind, fields))

    def kill(self, part: Part, sentence: str = "") -> None:
        """Ends a part at once. ``sentence`` is the fault, as the end of a sentence that begins with the part's name."""
        if sentence:
            part.killed_because = sentence
            self.log(f"{part.name} {sentence}", logging.ERROR)
        self.do(Kill(part.number))

    def start_front_end(self, name: str) -> FrontEnd:
        """Starts a front-end, which then needs the status and its links."""
        front_end = FrontEnd(self.new_part(), name, self.now)
        self.front_ends[front_end.number] = front_end
        self._told = {}
        self.do(StartFrontEnd(front_end))
        return front_end

    def start_engine(self, seat: Seat) -> None:
        """Starts an engine in ``seat``."""
        engine = Engine(self.new_part(), seat.name, self.now)
        seat.begin(engine)
        shadow = self.shadow
        self.do(StartEngine(seat, engine.number, shadow is not None and seat in shadow.current.seats))

    def stop_engine(self, seat: Seat) -> None:
        """Lets the engine finish its work and end; kills it while it loads, since it has no work then."""
        engine = seat.engine
        if engine is None:
            return
        if engine.ready_at is not None:
            self.send(engine.number, "stop")
        else:
            self.kill(engine)

    def link(self, front_end: FrontEnd, servable: Servable, version: ModelVersion, seat: Seat) -> None:
        """Connects a front-end with the engine of ``seat``."""
        assert seat.engine is not None
        front_end.linked_at, front_end.unjoined = self.now, 0
        told = {
            "standby": seat.standby,
            "model": servable.place,
            "name": servable.name,
            "version": version.number,
        }
        number = seat.engine.new_link(front_end.name)
        self.do(LinkFrontEnd(front_end.number, seat.engine.number, number, told))

    def offered_engines(self) -> dict[int, tuple[Servable, ModelVersion, Seat]]:
        """The engines to which every front-end should be connected, by number."""
        return {
            number: (servable, version, seat)
            for number, (servable, version, seat) in self.engines.items()
            if version in servable.offered and seat.engine is not None and seat.engine.ready_at is not None
        }

    # What everyone is told

    def enter(self, word: Word, detail: str) -> None:
        """Enters a state, unless the service drains: a drain only leads to the end."""
        status = self.status
        if self.draining:
            return
        if word != status.state:
            if status.state in _START:
                passed = status.phases.get(status.state, 0.0) + self.now - self._phase_began
                status.phases[status.state] = round(passed, 3)
            self._phase_began = self.now
        status.state, status.detail, status.progress = word, detail, None

    def give_up(self) -> None:
        """Ends the service with exit code 1: now, or after a running drain."""
        self.lost = True
        if not self.draining:
            self.exit_code = 1

    def broadcast_status(self) -> None:
        """Sends the status to every front-end if it has changed."""
        self._refresh_status()
        document = self.status.to_json()
        if document != self._told:
            self._told = document
            for front_end in self.front_ends:
                self.send(front_end, "status", status=document)

    def _refresh_status(self) -> None:
        self.status.switch = self.change.to_json() if self.change is not None else self.last_change
        self.status.engines = [engine for servable in self.servables for engine in servable.to_json()]
        shadow = self.shadow
        if shadow is not None:
            (seat, *_) = shadow.current.seats
            told = shadow.to_json()[0]
            self.status.shadow = {
                "weights": told["weights"],
                "state": told["state"],
                "reason": seat.closed,
                **self.tally.to_json(),
            }
