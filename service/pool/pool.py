"""All engines, by model and device: started, watched, replaced, stopped. Part of the supervisor's one thread.

A model is served while one of its engines is. What that makes of the service's state is decided here: it is ready
when every model is served, and an engine's death is the service's only where no other engine has the same model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

from service import metrics
from service.child import Child
from service.engine import process as engine
from service.engine.transport import Channel
from service.pool.board import Board
from service.pool.seat import LIVES, Seat, Serving
from service.pool.versions import Servable, Version
from service.settings import Settings
from service.status import State, Status

log = logging.getLogger(__name__)

Heard = Callable[[Child, dict[str, Any], list[int]], None]


class Host(Protocol):
    """What the pool wants of the supervisor."""

    status: Status
    front_ends: list[Child]
    processes: bool
    """Whether parts are processes, which can be killed and replaced."""

    def spawn(self, name: str, main: Callable[[Channel], None]) -> Child: ...
    def watch(self, child: Child, spoke: Heard, ended: Callable[[Child], None]) -> None: ...
    def forget(self, child: Child) -> None: ...
    def kill(self, child: Child, sentence: str) -> None: ...

    def enter(self, state: State, detail: str) -> None:
        """The service is in another state, unless it drains."""

    def tell(self) -> None:
        """Every front-end hears of the status."""

    def came_ready(self) -> None:
        """All models are served."""

    @property
    def over(self) -> bool:
        """Whether the service is about to end, so that nothing is started any more."""

    def give_up(self) -> None:
        """The service ends now, with exit code 1."""

    def end_after_answers(self) -> None:
        """The same after whoever waits has been told."""

    def engines_ended(self, lost: bool) -> None:
        """During a drain: an engine has gone. ``lost`` says that somebody may have waited for it."""


class Pool:
    """Construct, `start`; the supervisor's events come in by `spoke` and `ended`."""

    def __init__(self, settings: Settings, host: Host) -> None:
        self._host = host
        self.board = Board()
        self._versions = 0
        self._engines = 0
        self._names = 0
        self.servables = [Servable(0, self._version(settings))]
        for servable in self.servables:
            self.board.show(servable.place, servable.current.number)

    # What there is

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
        found = self._find(child)
        return found[2].patience(silence) if found else silence

    def _find(self, child: Child) -> tuple[Servable, Version, Seat] | None:
        return next((found for found in self if found[2].child is child), None)

    def _version(self, settings: Settings) -> Version:
        self._versions += 1
        version = Version(self._versions, settings)
        for device in [settings.device]:
            self._names += 1
            name = "engine" if self._names == 1 else f"engine-{self._names}"
            version.seats.append(Seat(name, device, settings.model_copy(update={"device": device})))
        return version

    # Starting

    def start(self) -> None:
        """Starts every engine."""
        for _, _, seat in self:
            self._start(seat)

    def _start(self, seat: Seat) -> None:
        self._engines += 1
        main = partial(engine.main, seat.settings, given_up=tuple(seat.given_up), name=seat.name)
        seat.begin(self._engines, self._host.spawn(seat.name, main))
        assert seat.child is not None
        self._host.watch(seat.child, self._spoke, self._ended)

    def introduce(self, front_end: Child) -> None:
        """Joins ``front_end`` to every engine that takes work and that it has not found to."""
        for servable, version, seat in self:
            if seat.serving is not None and seat.engine not in front_end.joined:
                self._join(front_end, servable, version, seat)

    def _join(self, front_end: Child, servable: Servable, version: Version, seat: Seat) -> None:
        told = {"model": servable.place, "name": servable.name, "version": version.number}
        seat.introduce(front_end, told)

    def missing(self, joined: set[int]) -> bool:
        """Whether an engine takes work that is not among those that a front-end is ``joined`` to."""
        return any(seat.serving is not None and seat.engine not in joined for _, _, seat in self)

    # What engines say

    def _spoke(self, child: Child, message: dict[str, Any], descriptors: list[int]) -> None:
        found = self._find(child)
        assert found is not None
        servable, version, seat = found
        match message["kind"]:
            case "phase":
                log.info("%s%s: %s", message["state"], self._where(seat), message["detail"])
                if not servable.current.serving:
                    self._host.enter(message["state"], message["detail"])
            case "progress":
                if not servable.current.serving:
                    self._host.status.progress = {"done": message["done"], "total": message["total"]}
                    self._host.tell()
            case "ready":
                arena, card = descriptors
                seat.ready(Serving(message["geometry"], arena, card))
                for front_end in self._host.front_ends:
                    self._join(front_end, servable, version, seat)
                self._serves(seat)
            case "distrusted":
                # Not asked from now on; the engine ends by itself, and `_ended` starts another.
                seat.distrusted(message["message"])
                self._say_lost(servable, message["message"])
            case "hung":
                self._hung(child, servable, seat, message["seconds"])
            case "failed":
                self._cannot_start(servable, seat, message["message"])

    def _where(self, seat: Seat) -> str:
        """In a log line, where there is more than one engine."""
        return f" ({seat.name}, {seat.device})" if self._names > 1 else ""

    def _serves(self, seat: Seat) -> None:
        if all(servable.current.serving for servable in self.servables):
            came = self._host.status.state != "ready"
            self._host.enter("ready", "")
            if came:
                self._host.came_ready()
                return
        log.info("%s serves on %s", seat.name, seat.device)

    def _say_lost(self, servable: Servable, detail: str) -> None:
        """The service has failed, if nothing serves the model any more."""
        if not servable.current.serving:
            self._host.enter("failed", detail)

    def _hung(self, child: Child, servable: Servable, seat: Seat, seconds: float) -> None:
        sentence = f"was killed: a batch had been running for {seconds:.0f} s"
        seat.hung()
        self._say_lost(servable, f"the engine {sentence}")
        self._host.kill(child, sentence)
        if not self._host.processes:
            log.error("a thread that hangs cannot be replaced; giving up")
            self._host.give_up()

    def _cannot_start(self, servable: Servable, seat: Seat, message: str) -> None:
        log.error("%s%s", message, self._where(seat))
        if self._others_serve(servable, seat):
            seat.closed = message
            return
        self._host.enter("failed", message)
        self._host.give_up()

    def _others_serve(self, servable: Servable, seat: Seat) -> bool:
        return any(other is not seat for other in servable.current.serving)

    # Ends

    def _ended(self, child: Child) -> None:
        outcome = child.sentence or child.outcome()
        found = self._find(child)
        assert found is not None
        servable, _, seat = found
        self._host.forget(child)
        reason = seat.leave()
        if self._host.processes:
            metrics.forget(child.pid)
        if self._host.status.state == "draining":
            self._host.engines_ended(bool(self._host.front_ends))
        elif not self._host.over:
            self._replace(servable, seat, (outcome or "ended") + (f" ({reason})" if reason else ""))

    def _replace(self, servable: Servable, seat: Seat, outcome: str) -> None:
        who = f"the engine{self._where(seat)}"
        others = self._others_serve(servable, seat)
        if seat.closed:
            return
        if not seat.worth_a_start:
            log.error("%s %s before it was ever ready; giving up", who, outcome)
            if others:
                seat.closed = f"{outcome} before it was ever ready"
            else:
                self._host.give_up()
            return
        if seat.died_too_often():
            log.error("%s %s, as %d before it did young; giving up", who, outcome, LIVES - 1)
            if others:
                seat.closed = f"{outcome}, as {LIVES - 1} before it did young"
            else:
                self._host.end_after_answers()
            return
        self._host.status.restarts += 1
        log.error("%s %s and is started again", who, outcome)
        if not others:
            self._host.enter("failed", f"the engine {outcome} and is started again")
            self._host.status.phases.clear()
        self._start(seat)

    def stop(self) -> None:
        """Lets every engine end. The service does when the last one has."""
        if not self.children():
            self._host.engines_ended(False)
        for _, _, seat in self:
            seat.stop()

    def close(self) -> None:
        """Kills what is left and lets go of its memory."""
        for _, _, seat in self:
            if seat.child is not None:
                seat.child.kill()
            seat.leave()
