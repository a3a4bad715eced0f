"""All engines, by model and device: started, watched, replaced, stopped. Part of the supervisor's one thread.

A model is served while one of its engines is. What that makes of the service's state is decided here: it is ready
when every model is served, and an engine's death is the service's only where no other engine has the same model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

from service import metrics
from service.child import Child
from service.devices import gpus, resolve
from service.engine import process as engine
from service.engine.transport import Channel
from service.pool import room
from service.pool.board import Board
from service.pool.changes import Changes
from service.pool.seat import LIVES, Seat, Serving
from service.pool.shadow import Tally
from service.pool.versions import Servable, Version, called
from service.settings import Settings
from service.several import models_of
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
    def listen_to(self, descriptor: int, callback: Callable[[], None]) -> None: ...
    def stop_listening_to(self, descriptor: int) -> None: ...
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
        self.host = host
        self.board = Board()
        self.changes = Changes(self)
        self._versions = 0
        self._was_ready = False
        self._engines = 0
        self._names = 0
        self._budget = settings.memory_budget_mib
        wanted = models_of(settings)
        room.check_budget([one.settings.model for one in wanted], self._budget)
        self.servables = [
            Servable(place, self.new_version(own), name=name) for place, (name, own) in enumerate(wanted)
        ]
        self._tally = Tally()
        if settings.shadow is not None:
            self.servables.append(self._shadow_of(wanted[0].settings, settings.shadow))
        for servable in self.servables:
            servable.current.answered = True
            self.board.show(servable.place, servable.current.number)

    # What there is

    def _shadow_of(self, settings: Settings, weights: str) -> Servable:
        own = {"weights": weights, "standby": False, "watch_weights_ms": 0.0}
        version = self.new_version(settings.model_copy(update=own))
        return Servable(Board.shadow, version, shadow=True)

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
        found = self._find(child)
        return found[2].patience(silence) if found else silence

    def _find(self, child: Child) -> tuple[Servable, Version, Seat] | None:
        return next((found for found in self if found[2].child is child), None)

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

    def start(self) -> None:
        """Starts every model's first engine; `_start_others` follows."""
        for servable in self.asked:
            self.start_version(servable.current)

    def start_version(self, version: Version) -> None:
        """Starts its engines: one finds and converts the weights, and the others then have them ready."""
        self.start_seat(version.seats[0])

    def _start_others(self, servable: Servable, version: Version, standby: bool = False) -> None:
        """A ``standby`` only when there is nobody any more whose start it would delay."""
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
            shadow=seat in [one for each in self.servables if each.shadow for one in each.current.seats],
        )
        seat.begin(self._engines, self.host.spawn(seat.name, main))
        assert seat.child is not None
        self.host.watch(seat.child, self._spoke, self._ended)

    def introduce(self, front_end: Child) -> None:
        """Joins ``front_end`` to every engine that takes work and that it has not found to."""
        for servable in self.servables:
            for version in servable.offered:
                for seat in version.seats:
                    if seat.serving is not None and seat.engine not in front_end.joined:
                        self._join(front_end, servable, version, seat)

    def _join(self, front_end: Child, servable: Servable, version: Version, seat: Seat) -> None:
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

    def front_end_ended(self, child: Child) -> None:
        """It has no requests any more, and has joined nothing."""
        self.changes.left(child)
        self.changes.look_who_joined()

    def names(self, leave_out: Servable) -> set[str]:
        """What the other models are called."""
        return {servable.called for servable in self.asked if servable is not leave_out}

    # What everyone is told

    def tell(self) -> None:
        """Every front-end hears of the engines and of the change that is under way."""
        status = self.host.status
        status.engines = [engine for servable in self.servables for engine in servable.to_json()]
        status.shadow = self._shadow_to_json()
        status.switch, status.switches = self.changes.to_json(), dict(self.changes.counts)
        self.host.tell()

    def look(self) -> None:
        """The service is ready, if every model is served now."""
        if all(servable.current.serving for servable in self.asked) and self.host.status.state != "ready":
            self._was_ready = True
            self.host.enter("ready", "")
            self._start_shadow()

    def _start_shadow(self) -> None:
        """When all others are there, and if there is memory for one more."""
        for servable in self.servables:
            (seat, *_) = servable.current.seats
            if not servable.shadow or seat.engine or seat.closed:
                continue
            decision = self.changes.room_for(self.servables[0], servable.current.settings)
            if decision.refusal:
                log.error("the shadow is not started: %s", decision.refusal)
                seat.closed = decision.refusal
            else:
                self.start_version(servable.current)

    def hear_of_shadow(self, seen: Sequence[float]) -> None:
        """What a front-end has compared since it last said so."""
        if seen and any(seen):
            self._tally.add(int(seen[0]), int(seen[1]), *seen[2:])
            self.tell()

    def _shadow_to_json(self) -> dict[str, Any] | None:
        for servable in self.servables:
            if servable.shadow:
                (seat, *_) = servable.current.seats
                told = {"weights": called(seat.settings.weights), "state": seat.state, "reason": seat.closed}
                return {**told, **self._tally.to_json()}
        return None

    def measure_again(self) -> None:
        """Engines see how much memory there is for pictures, now that another has ended."""
        for servable in self.servables:
            for seat in servable.current.serving:
                if seat.child is not None:
                    seat.child.channel.send("measure")

    def budget_left(self) -> int | None:
        """Bytes that engines may take beside those that there are; None without a budget."""
        if self._budget is None or not self.host.processes:
            return None
        return (self._budget << 20) - sum(self._taken().values())

    def _taken(self) -> dict[str, int]:
        """Bytes by engine."""
        return {
            f"{seat.name} ({version.settings.model})": room.resident(seat.child.pid)
            for _, version, seat in self
            if seat.child is not None
        }

    def _over_budget(self) -> bool:
        """Whether the engines take more than they may; the first start ends then."""
        left = self.budget_left()
        if left is None or left >= 0:
            return False
        each = ", ".join(f"{name} {size >> 20} MiB" for name, size in self._taken().items())
        message = f"the engines take {-left >> 20} MiB more than memory_budget_mib={self._budget}: {each}"
        log.error("%s", message)
        if self._was_ready:
            return False
        self.host.enter("failed", message)
        self.host.give_up()
        return True

    def tick(self, now: float) -> None:
        """Whatever is due."""
        if not self.draining:
            self.changes.tick(now)

    # What engines say

    def _spoke(self, child: Child, message: dict[str, Any], descriptors: list[int]) -> None:
        found = self._find(child)
        assert found is not None
        servable, version, seat = found
        role = servable.role(version)
        match message["kind"]:
            case "phase":
                self._phase(servable, version, seat, message["state"], message["detail"])
            case "progress":
                self._progress(servable, version, {"done": message["done"], "total": message["total"]})
            case "ready":
                arena, card = descriptors
                seat.ready(Serving(message["geometry"], arena, card))
                self._start_others(servable, version, standby=True)
                for front_end in self.host.front_ends:
                    if role != "leaving" or front_end.name in version.awaited:
                        self._join(front_end, servable, version, seat)
                self._serves(servable, version, seat)
            case "distrusted":
                # Not asked from now on; the engine ends by itself, and `_ended` starts another.
                seat.distrusted(message["message"])
                if role == "current":
                    self._say_lost(servable, message["message"])
            case "hung":
                self._hung(child, servable, seat, message["seconds"])
            case "failed" if role == "current":
                self._cannot_start(servable, seat, message["message"])
            case "failed":
                seat.closed = message["message"]  # `_ended` says it

    def _phase(self, servable: Servable, version: Version, seat: Seat, state: State, detail: str) -> None:
        log.info("%s%s: %s", state, self._where(seat), detail)
        if state == "warming":
            self._start_others(servable, version)
        if self.changes.of(version):
            self.changes.moved(f"{state}: {detail}")
        elif version is servable.current and not version.serving and not servable.shadow:
            self.host.enter(state, detail)

    def _progress(self, servable: Servable, version: Version, progress: dict[str, int | None]) -> None:
        if self.changes.of(version):
            self.changes.moved("loading: download", progress)
        elif version is servable.current and not version.serving and not servable.shadow:
            self.host.status.progress = progress
            self.host.tell()

    def _where(self, seat: Seat) -> str:
        """In a log line, where there is more than one engine."""
        return f" ({seat.name}, {seat.device})" if self._names > 1 else ""

    def _serves(self, servable: Servable, version: Version, seat: Seat) -> None:
        if self._over_budget():
            return
        came = self.host.status.state != "ready"
        if version is servable.current:
            self.look()
        if came and self.host.status.state == "ready":
            self.host.came_ready()
        else:
            log.info("%s is ready on %s", seat.name, seat.device)
        if self.changes.of(version):
            self.changes.ready()
        self.tell()

    def _say_lost(self, servable: Servable, detail: str) -> None:
        """The service has failed, if nothing serves the model any more."""
        if not servable.current.serving and not servable.shadow:
            self.host.enter("failed", detail)

    def _hung(self, child: Child, servable: Servable, seat: Seat, seconds: float) -> None:
        sentence = f"was killed: a batch had been running for {seconds:.0f} s"
        seat.hung()
        if seat in servable.current.seats:
            self._say_lost(servable, f"the engine {sentence}")
        self.host.kill(child, sentence)
        if not self.host.processes:
            log.error("a thread that hangs cannot be replaced; giving up")
            self.host.give_up()

    def _cannot_start(self, servable: Servable, seat: Seat, message: str) -> None:
        log.error("%s%s", message, self._where(seat))
        if self._others_serve(servable, seat):
            seat.closed = message
            return
        self.host.enter("failed", message)
        self.host.give_up()

    def _others_serve(self, servable: Servable, seat: Seat) -> bool:
        """Whether nothing depends on ``seat``: another device has the model, or it is the shadow's."""
        return servable.shadow or any(other is not seat for other in servable.current.serving)

    # Ends

    def _ended(self, child: Child) -> None:
        outcome = child.sentence or child.outcome()
        found = self._find(child)
        assert found is not None
        servable, version, seat = found
        self.host.forget(child)
        reason = seat.leave()
        if self.host.processes:
            metrics.forget(child.pid)
        said = (outcome or "ended") + (f" ({reason})" if reason else "")
        current = version is servable.current
        if self.draining:
            self.host.engines_ended(current and not servable.shadow and bool(self.host.front_ends))
        elif self.host.over:
            return
        elif current:
            self._replace(servable, seat, said)
            self.tell()
        elif self.changes.of(version):
            self.changes.failed(seat.closed or f"the new engine {said}")
        else:
            if version is servable.kept:
                self.changes.lost_kept(servable)
            if version.answered and version.awaited and not seat.died_too_often():
                log.error("the engine%s %s and is started again for those who wait", self._where(seat), said)
                self.start_seat(seat)
        self.changes.engine_ended(servable, version)

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
                self.host.give_up()
            return
        if seat.died_too_often():
            log.error("%s %s, as %d before it did young; giving up", who, outcome, LIVES - 1)
            if others:
                seat.closed = f"{outcome}, as {LIVES - 1} before it did young"
            else:
                self.host.end_after_answers()
            return
        self.host.status.restarts += 1
        log.error("%s %s and is started again", who, outcome)
        if not others:
            self.host.enter("failed", f"the engine {outcome} and is started again")
            self.host.status.phases.clear()
        self.start_seat(seat)

    def stop(self) -> None:
        """Lets every engine end. The service does when the last one has."""
        self.changes.cancel("the service ends")
        if not self.children():
            self.host.engines_ended(False)
        for _, _, seat in self:
            seat.stop()

    def close(self) -> None:
        """Kills what is left and lets go of its memory."""
        for _, _, seat in self:
            if seat.child is not None:
                seat.child.kill()
            seat.leave()
