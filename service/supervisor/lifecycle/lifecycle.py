"""The supervisor's decisions, without a clock, a process or a socket: events in, actions out.

    starting ──▶ loading ──▶ warming ──▶ ready ──signal──▶ draining ──▶ exit code
                    ▲                     │   │
                    └──── failed ◀────────┘   └── given up ──▶ draining, or the exit code 1 at once

    draining:  the port closes · front-ends answer their requests and end · then engines stop · then the exit code

A part that dies is started again at once, unless it dies young again and again, or is an engine that has reported why
it cannot start. During a drain nothing is started.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec

from service.options.devices import EngineDevice
from service.settings import Settings
from service.supervisor.lifecycle import leaving
from service.supervisor.lifecycle.actions import Action, Asker, ClosePort, Load, Wish
from service.supervisor.lifecycle.changes import Changes
from service.supervisor.lifecycle.crash_loop import CrashLoopGuard
from service.supervisor.lifecycle.engines import Engines
from service.supervisor.lifecycle.parts import FrontEnd
from service.supervisor.lifecycle.state import State
from service.supervisor.lifecycle.versions import Model

#: The short runs of a front-end in a row after which it is given up, and the seconds below which a run is short.
FRONT_END_CRASH_LOOP = 5, 5.0
#: Seconds of silence after which a part counts as hung, far above any pause that a loaded host causes.
SILENCE = 30.0
#: Seconds beyond drain_timeout_ms for front-ends to close their connections, and for engines to end.
LAST_GRACE = 2.0

P = ParamSpec("P")


def event(
    decide: Callable[Concatenate[Lifecycle, P], None],
) -> Callable[Concatenate[Lifecycle, float, P], list[Action]]:
    """Makes a method an event: its first argument is the time, and it returns the actions that follow."""

    @wraps(decide)
    def handled(self: Lifecycle, now: float, /, *args: P.args, **kwargs: P.kwargs) -> list[Action]:
        state = self.state
        if state.exit_code is not None:
            return []
        state.now = now
        decide(self, *args, **kwargs)
        self._settle()
        actions, state.actions = state.actions, []
        return actions

    return handled


class Lifecycle:
    """The state machine of the service. Call an event for all that happens, `started` first, until there is an
    ``state.exit_code``.

    The first argument of every event is its time, in seconds of a monotonic clock.
    """

    def __init__(self, settings: Settings, models: Sequence[Model], *, processes: bool) -> None:
        """The first of the ``models`` is the default; ``processes`` says whether parts can be killed and replaced."""
        self._settings = settings
        self.state = State(models, processes=processes)
        self._changes = Changes(self.state)
        self._engines = Engines(self.state, self._changes)
        self._crash_loops: dict[str, CrashLoopGuard] = {}
        """The lives of front-ends, by name."""
        self._give_up_at: float | None = None
        """The time at which a drain has taken too long."""
        self._stopping = False
        """True once the engines have been told to stop."""

    def __repr__(self) -> str:
        return f"<Lifecycle {self.state.status.state}, {len(self.state.parts)} parts>"

    def _settle(self) -> None:
        """Takes the steps that depend on the state only, whatever event has led to it."""
        state = self.state
        self._changes.advance()
        while leaving.remove_gone(state):  # this may free the memory that a change waits for
            self._changes.advance()
        self._engines.enter_ready_if_served()
        if state.giving_up and not state.draining:
            self._drain(0.0, lost=True)
        if state.draining and not state.front_ends:
            self._stop_engines()
        state.broadcast_status()

    # Events

    @event
    def started(self, url: str, front_ends: int) -> None:
        """The port is bound; ``url`` is its address."""
        self.state.begin(url)
        self._engines.start()  # before the front-ends: engines load while this process imports them
        for index in range(front_ends):
            self._start_front_end(f"frontend-{index + 1}")

    @event
    def message_received(self, number: int, message: Mapping[str, Any]) -> None:
        """A part has sent a ``message`` without descriptors."""
        part = self.state.parts.get(number)
        if part is None:
            return
        part.last_message_at = self.state.now
        if isinstance(part, FrontEnd):
            self._handle_front_end_message(part, message)
        else:
            self._engines.handle_message(number, message)

    @event
    def engine_ready(self, number: int, names: dict[str, str], over_budget: str) -> None:
        """An engine is ready. ``names`` are those of its ``model`` and its ``weights``.

        ``over_budget`` is an error if all engines together exceed the memory budget, else empty.
        """
        if number in self.state.engines:
            self.state.parts[number].last_message_at = self.state.now
            self._engines.ready(number, names, over_budget)

    @event
    def ended(self, number: int, outcome: str | None) -> None:
        """A part has ended. ``outcome`` says how, or is None if it ended well."""
        front_end = self.state.front_ends.pop(number, None)
        if front_end is not None:
            self._front_end_ended(front_end, outcome)
        elif number in self.state.engines:
            self._engines.ended(number, outcome)

    @event
    def signalled(self, name: str) -> None:
        """A signal of this ``name`` asks the service to end."""
        if self.state.draining:
            self.state.log(f"{name} again: ending at once", logging.WARNING)
            self.state.exit_code = 1
        else:
            self.state.log(f"{name}: draining")
            self._drain(self._settings.drain_delay_ms / 1000)

    @event
    def weights_changed(self, place: int) -> None:
        """The weights of the model at ``place`` have changed on disk."""
        self._changes.load(self.state.servables[place], Wish())

    @event
    def load_possible(
        self, load: Load, settings: Settings, devices: Sequence[EngineDevice], make_room: bool
    ) -> None:
        """A `Load` can begin. ``make_room`` says that the kept version must end first, for its memory."""
        self._changes.begin(load, settings, devices, make_room)

    @event
    def load_refused(self, load: Load, settings: Settings | None, code: str, reason: str) -> None:
        """A `Load` is refused, with the ``code`` of an error and the reason in words.

        It counts as a failed load with these ``settings``; None for an invalid order, which does not count.
        """
        self._changes.refuse(load, settings, code, reason)

    @event
    def checked(self, version: int, problem: str, found: Mapping[str, Any]) -> None:
        """Known images have been run through the engines of ``version``. ``problem`` is empty if it may answer."""
        self._changes.checked(version, problem, found)

    @event
    def shadow_measured(self, refusal: str) -> None:
        """The memory for the shadow is measured. ``refusal`` is empty if it suffices."""
        self._engines.shadow_measured(refusal)

    @event
    def tick(self) -> None:
        """Time has passed."""
        state = self.state
        if not state.draining:
            self._changes.end_expired()
            leaving.kill_late(state)
        for part in state.parts.values() if state.processes else ():
            silent = state.now - part.last_message_at
            if silent > state.patience(part, SILENCE):
                state.kill(part, f"was silent for {silent:.0f} s and was killed")
                part.last_message_at = state.now
        if self._give_up_at is not None and state.now >= self._give_up_at:
            state.log("not everything ended within drain_timeout_ms", logging.ERROR)
            state.exit_code = 1

    # Front-ends

    def _handle_front_end_message(self, front_end: FrontEnd, message: Mapping[str, Any]) -> None:
        match message["kind"]:
            case "alive":
                front_end.joined = set(message["joined"])
                if any(message["shadow"]):
                    self.state.tally.add(*message["shadow"])
                lost = front_end.is_lost(set(self.state.offered_engines()), self.state.now)
                if lost and self.state.processes:
                    self.state.kill(front_end, "was not joined to the engine and was killed")
            case "again":
                self._connect(front_end)
            case "left":
                leaving.left(self.state, front_end.number, message["version"])
            case "order":
                self._changes.ordered(Asker(front_end.number, message["number"]), message)

    def _start_front_end(self, name: str) -> None:
        self._connect(self.state.start_front_end(name))

    def _connect(self, front_end: FrontEnd) -> None:
        """Connects the front-end to every ready engine that it has not reported as joined."""
        for number, found in self.state.offered_engines().items():
            if number not in front_end.joined:
                self.state.link(front_end, *found)

    def _front_end_ended(self, front_end: FrontEnd, outcome: str | None) -> None:
        state = self.state
        outcome = front_end.killed_because or outcome
        leaving.left(state, front_end.number)
        if state.draining:
            state.lost |= outcome is not None
            return
        guard = self._crash_loops.setdefault(front_end.name, CrashLoopGuard(*FRONT_END_CRASH_LOOP))
        who = f"{front_end.name} {outcome or 'ended'}"
        if guard.record(state.now - front_end.began_at):
            state.log(f"{who}, {guard.short_runs} times in a row; giving up", logging.ERROR)
            state.give_up()
            return
        state.log(f"{who}; another takes its place", logging.ERROR)
        state.status.frontend_restarts += 1
        self._start_front_end(front_end.name)

    # The end

    def _drain(self, delay: float, lost: bool = False) -> None:
        """Begins to end the service. Front-ends take new requests for another ``delay`` seconds."""
        state = self.state
        state.lost |= lost
        state.enter("draining", "ending after what was admitted")
        state.broadcast_status()
        self._changes.fail("the service ends", code="draining")
        self._give_up_at = state.now + delay + self._settings.drain_timeout_ms / 1000 + LAST_GRACE
        state.do(ClosePort())
        for front_end in state.front_ends:
            state.send(front_end, "drain", delay=delay)

    def _stop_engines(self) -> None:
        """Stops the engines, which have no front-ends any more. The service ends with the last engine."""
        if not self._stopping:
            self._stopping = True
            for _, _, seat in self.state.seats:
                self.state.stop_engine(seat)
        if not self.state.engines:
            self.state.exit_code = int(self.state.lost)
