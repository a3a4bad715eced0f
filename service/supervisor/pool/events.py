"""What engines say, and what follows from their ends: who is started again, and what it makes of the service's state.

A model is served while one of its engines is. An engine's death is the service's only where no other engine has the
same model; a shadow's is nobody's.
"""

from __future__ import annotations

import logging
from typing import Any

from service.observability import metrics
from service.shared.status import State
from service.supervisor.child import Child
from service.supervisor.pool.budget import Budget
from service.supervisor.pool.changes import Changes
from service.supervisor.pool.engines import Engines
from service.supervisor.pool.leaving import Leaving
from service.supervisor.pool.seat import MAX_SHORT_RUNS, Seat, Serving
from service.supervisor.pool.versions import Servable, Version

log = logging.getLogger(__name__)


class Events:
    """Part of the `Pool`."""

    def __init__(self, pool: Engines, changes: Changes, leaving: Leaving, budget: Budget) -> None:
        self._pool = pool
        self._changes = changes
        self._leaving = leaving
        self._budget = budget

    def spoke(self, child: Child, message: dict[str, Any], descriptors: list[int]) -> None:
        """An engine has said something."""
        found = self._pool.find(child)
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
                self._pool.start_others(servable, version, standby=True)
                for front_end in self._pool.host.front_ends:
                    if role != "leaving" or front_end.name in version.awaited:
                        self._pool.join(front_end, servable, version, seat)
                self._serves(servable, version, seat)
            case "distrusted":
                # Not asked from now on; the engine ends by itself, and `ended` starts another.
                seat.distrusted(message["message"])
                if role == "current":
                    self._say_lost(servable, message["message"])
            case "hung":
                self._hung(child, servable, seat, message["seconds"])
            case "failed" if role == "current":
                self._cannot_start(servable, seat, message["message"])
            case "failed":
                seat.closed = message["message"]  # `ended` says it

    def _phase(self, servable: Servable, version: Version, seat: Seat, state: State, detail: str) -> None:
        log.info("%s%s: %s", state, self._where(seat), detail)
        if state == "warming":
            self._pool.start_others(servable, version)
        if self._changes.of(version):
            self._changes.moved(f"{state}: {detail}")
        elif version is servable.current and not version.serving and not servable.shadow:
            self._pool.host.enter(state, detail)

    def _progress(self, servable: Servable, version: Version, progress: dict[str, int | None]) -> None:
        if self._changes.of(version):
            self._changes.moved("loading: download", progress)
        elif version is servable.current and not version.serving and not servable.shadow:
            self._pool.host.status.progress = progress
            self._pool.host.tell()

    def _where(self, seat: Seat) -> str:
        """In a log line, where there is more than one engine."""
        return f" ({seat.name}, {seat.device})" if self._pool.several else ""

    def _serves(self, servable: Servable, version: Version, seat: Seat) -> None:
        if self._budget.is_over():
            return
        came = self._pool.host.status.state != "ready"
        if version is servable.current:
            self._pool.look()
        if came and self._pool.host.status.state == "ready":
            self._pool.host.came_ready()
        else:
            log.info("%s is ready on %s", seat.name, seat.device)
        if self._changes.of(version):
            self._changes.ready()
        self._pool.tell()

    def _say_lost(self, servable: Servable, detail: str) -> None:
        """The service has failed, if nothing serves the model any more."""
        if not servable.current.serving and not servable.shadow:
            self._pool.host.enter("failed", detail)

    def _hung(self, child: Child, servable: Servable, seat: Seat, seconds: float) -> None:
        sentence = f"was killed: a batch had been running for {seconds:.0f} s"
        seat.hung()
        if seat in servable.current.seats:
            self._say_lost(servable, f"the engine {sentence}")
        self._pool.host.kill(child, sentence)
        if not self._pool.host.processes:
            log.error("a thread that hangs cannot be replaced; giving up")
            self._pool.host.give_up()

    def _cannot_start(self, servable: Servable, seat: Seat, message: str) -> None:
        log.error("%s%s", message, self._where(seat))
        if self._others_serve(servable, seat):
            seat.closed = message
            return
        self._pool.host.enter("failed", message)
        self._pool.host.give_up()

    def _others_serve(self, servable: Servable, seat: Seat) -> bool:
        """Whether nothing depends on ``seat``: another device has the model, or it is the shadow's."""
        return servable.shadow or any(other is not seat for other in servable.current.serving)

    def ended(self, child: Child) -> None:
        """An engine has ended, well or not."""
        outcome = child.sentence or child.outcome()
        found = self._pool.find(child)
        assert found is not None
        servable, version, seat = found
        self._pool.host.forget(child)
        reason = seat.leave()
        if self._pool.host.processes:
            metrics.forget(child.pid)
        said = (outcome or "ended") + (f" ({reason})" if reason else "")
        current = version is servable.current
        if self._pool.draining:
            self._pool.host.engines_ended(
                current and not servable.shadow and bool(self._pool.host.front_ends)
            )
        elif self._pool.host.over:
            return
        elif current:
            self._replace(servable, seat, said)
            self._pool.tell()
        elif self._changes.of(version):
            self._changes.failed(seat.closed or f"the new engine {said}")
        else:
            if version is servable.kept:
                self._changes.lost_kept(servable)
            if version.answered and version.awaited and not seat.died_too_often():
                log.error("the engine%s %s and is started again for those who wait", self._where(seat), said)
                self._pool.start_seat(seat)
        self._leaving.engine_ended(servable, version)

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
                self._pool.host.give_up()
            return
        if seat.died_too_often():
            log.error("%s %s, as %d before it did young; giving up", who, outcome, MAX_SHORT_RUNS - 1)
            if others:
                seat.closed = f"{outcome}, as {MAX_SHORT_RUNS - 1} before it did young"
            else:
                self._pool.host.end_after_answers()
            return
        self._pool.host.status.restarts += not servable.shadow
        log.error("%s %s and is started again", who, outcome)
        if not others:
            self._pool.host.enter("failed", f"the engine {outcome} and is started again")
            self._pool.host.status.phases.clear()
        self._pool.start_seat(seat)
