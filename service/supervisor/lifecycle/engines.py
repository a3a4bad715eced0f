"""The messages and the ends of engines: which engines are started again, and what follows for the service's state.

A model is served while one of its engines is. An engine's death makes the service fail only if no other engine has the
same model; the death of a shadow's engine never does.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from service.shared.status import State as Word
from service.supervisor.lifecycle.actions import MeasureShadow
from service.supervisor.lifecycle.changes import Changes
from service.supervisor.lifecycle.parts import Engine
from service.supervisor.lifecycle.seat import MAX_SHORT_RUNS, Seat
from service.supervisor.lifecycle.state import State
from service.supervisor.lifecycle.versions import ModelVersion, Servable


class Engines:
    """Decides about engines, with a method for each kind of news."""

    def __init__(self, state: State, changes: Changes) -> None:
        self._state = state
        self._changes = changes

    def start(self) -> None:
        """Starts every model's first engine; the others follow."""
        for servable in self._state.asked:
            self._state.start_engine(servable.current.seats[0])

    def _start_others(self, servable: Servable, version: ModelVersion, standby: bool = False) -> None:
        """Starts the engines that waited for the first one to convert the weights.

        A ``standby`` is started only with ``standby``, when it delays no other start.
        """
        if version in servable.leaving or self._state.draining:
            return
        for seat in version.seats:
            if not seat.started and (standby or not seat.standby):
                self._state.start_engine(seat)

    # What they say

    def handle_message(self, number: int, message: Mapping[str, Any]) -> None:
        """Handles a ``message`` of an engine."""
        servable, version, seat = self._state.engines[number]
        match message["kind"]:
            case "phase":
                self._phase(servable, version, seat, message["state"], message["detail"])
            case "progress":
                self._progress(servable, version, {"done": message["done"], "total": message["total"]})
            case "distrusted":
                # The engine gets no more requests and ends by itself; `ended` then starts another one.
                seat.distrusted(message["message"])
                self._report_loss(servable, version, message["message"])
            case "hung":
                self._hung(servable, version, seat, message["seconds"])
            case "failed" if version is servable.current:
                self._cannot_start(servable, seat, message["message"])
            case "failed":
                seat.closed = message["message"]  # `ended` reports it

    def _phase(self, servable: Servable, version: ModelVersion, seat: Seat, word: Word, detail: str) -> None:
        self._state.log(f"{word}{self._state.where(seat)}: {detail}")
        if word == "warming":
            self._start_others(servable, version)
        if self._changes.of(version):
            self._changes.moved(f"{word}: {detail}")
        elif self._is_awaited(servable, version):
            self._state.enter(word, detail)

    def _progress(self, servable: Servable, version: ModelVersion, progress: dict[str, int | None]) -> None:
        if self._changes.of(version):
            self._changes.moved("loading: download", progress)
        elif self._is_awaited(servable, version):
            self._state.status.progress = progress

    @staticmethod
    def _is_awaited(servable: Servable, version: ModelVersion) -> bool:
        """True if the service is not ready because ``version`` is not."""
        return version is servable.current and not version.serving and not servable.shadow

    def ready(self, number: int, names: dict[str, str], over_budget: str) -> None:
        """Connects all front-ends to an engine that has become ready."""
        state = self._state
        servable, version, seat = state.engines[number]
        seat.ready(names, state.now)
        self._start_others(servable, version, standby=True)
        for front_end in state.front_ends.values():
            if version not in servable.leaving or front_end.number in version.awaited:
                state.link(front_end, servable, version, seat)
        if over_budget:
            state.log(over_budget, logging.ERROR)
            if not state.was_ready:
                state.enter("failed", over_budget)
                state.give_up()
                return
        if not self.enter_ready_if_served():
            state.log(f"{seat.name} is ready on {seat.device.name}")
        if self._changes.of(version):
            self._changes.ready()

    def _report_loss(self, servable: Servable, version: ModelVersion, detail: str) -> None:
        """Enters the state "failed" if no engine serves the model any more."""
        if self._is_awaited(servable, version):
            self._state.enter("failed", detail)

    def _hung(self, servable: Servable, version: ModelVersion, seat: Seat, seconds: float) -> None:
        assert seat.engine is not None
        sentence = f"was killed: a batch had been running for {seconds:.0f} s"
        seat.engine.trusted = False
        self._report_loss(servable, version, f"the engine {sentence}")
        self._state.kill(seat.engine, sentence)
        if not self._state.processes:
            self._state.log("a thread that hangs cannot be replaced; giving up", logging.ERROR)
            self._state.give_up()

    def _cannot_start(self, servable: Servable, seat: Seat, message: str) -> None:
        self._state.log(f"{message}{self._state.where(seat)}", logging.ERROR)
        if servable.others_serve(seat):
            seat.closed = message
            return
        self._state.enter("failed", message)
        self._state.give_up()

    # What their ends mean

    def ended(self, number: int, outcome: str | None) -> None:
        """Handles the end of an engine."""
        state = self._state
        servable, version, seat = state.engines[number]
        engine = seat.leave()
        reason = engine.killed_because or outcome or "ended"
        reason += f" ({engine.distrust})" if engine.distrust else ""
        if state.draining:
            # A request may have waited for it.
            state.lost |= version is servable.current and not servable.shadow and bool(state.front_ends)
        elif version is servable.current:
            self._replace(servable, seat, engine, reason)
        elif self._changes.of(version):
            self._changes.fail(seat.closed or f"the new engine {reason}")
        else:
            if version is servable.kept:
                self._changes.lost_kept(servable)
            if version.answered and version.awaited and not seat.died_too_often(engine, state.now):
                line = f"the engine{state.where(seat)} {reason} and is started again for those who wait"
                state.log(line, logging.ERROR)
                state.start_engine(seat)

    def _replace(self, servable: Servable, seat: Seat, engine: Engine, reason: str) -> None:
        state, who = self._state, f"the engine{self._state.where(seat)}"
        others = servable.others_serve(seat)
        if seat.closed:
            return
        if not seat.worth_a_start:
            state.log(f"{who} {reason} before it was ever ready; giving up", logging.ERROR)
            if others:
                seat.closed = f"{reason} before it was ever ready"
            else:
                state.give_up()
        elif seat.died_too_often(engine, state.now):
            state.log(
                f"{who} {reason}, as {MAX_SHORT_RUNS - 1} before it did young; giving up", logging.ERROR
            )
            if others:
                seat.closed = f"{reason}, as {MAX_SHORT_RUNS - 1} before it did young"
            else:
                state.giving_up = True
        else:
            state.status.restarts += not servable.shadow
            state.log(f"{who} {reason} and is started again", logging.ERROR)
            if not others:
                state.enter("failed", f"the engine {reason} and is started again")
                state.status.phases.clear()
            state.start_engine(seat)

    # The service is ready

    def enter_ready_if_served(self) -> bool:
        """Enters the state "ready" if every model is served. True if it has just become so."""
        state = self._state
        over = state.draining or state.giving_up or state.exit_code is not None
        served = all(servable.current.serving for servable in state.asked)
        if over or not served or state.status.state == "ready":
            return False
        state.was_ready = True
        state.enter("ready", "")
        phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in state.status.phases.items())
        state.log(f"ready on {state.url} ({phases})")
        self._start_shadow()
        return True

    def _start_shadow(self) -> None:
        """Asks for the memory that the shadow needs, unless it has been started or given up."""
        shadow = self._state.shadow
        if shadow is not None and not shadow.current.seats[0].started and not shadow.current.seats[0].closed:
            self._state.do(MeasureShadow(shadow.current.settings))

    def shadow_measured(self, refusal: str) -> None:
        """Starts the shadow's engine, unless there is a ``refusal`` for lack of memory."""
        shadow = self._state.shadow
        if shadow is None or shadow.current.seats[0].started or self._state.draining:
            return
        if refusal:
            self._state.log(f"the shadow is not started: {refusal}", logging.ERROR)
            shadow.current.seats[0].closed = refusal
        else:
            self._state.start_engine(shadow.current.seats[0])
