"""What the supervisor decides, without a clock, a process or a socket: events in, actions out.

    starting ──▶ loading ──▶ warming ──▶ ready ──signal──▶ draining ──▶ exit code
                    ▲                     │   │
                    └──── failed ◀────────┘   └── given up ──▶ draining, or the exit code 1 at once

    draining:  the port closes · front-ends answer what they have and end · then engines stop · then the exit code

Whatever dies is started again at once: a front-end unless it dies young again and again; an engine unless it said
why it cannot start, or dies young again and again. During a drain nothing is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec

from service.options.devices import Device
from service.settings import Settings
from service.supervisor.lifecycle import leaving
from service.supervisor.lifecycle.actions import Action, Asker, ClosePort, Load, Wish
from service.supervisor.lifecycle.changes import Changes
from service.supervisor.lifecycle.crash_loop import CrashLoopGuard
from service.supervisor.lifecycle.engines import Engines
from service.supervisor.lifecycle.parts import FrontEnd
from service.supervisor.lifecycle.state import State
from service.supervisor.lifecycle.versions import Model

#: Short runs of a front-end in a row, and the seconds that make one long: one that cannot start dies in a moment.
FRONT_END_CRASH_LOOP = 5, 5.0
#: Seconds of silence after which a part is taken for hung. Far above any pause that a loaded host causes.
SILENCE = 30.0
#: Seconds beyond its timeout that a front-end gets to close its connections, and the engine to end.
LAST_GRACE = 2.0

P = ParamSpec("P")


def event(
    decide: Callable[Concatenate[Lifecycle, P], None],
) -> Callable[Concatenate[Lifecycle, float, P], list[Action]]:
    """Makes a method an event: its first argument is when it happens, and it returns what is to be done."""

    @wraps(decide)
    def happens(self: Lifecycle, now: float, /, *args: P.args, **kwargs: P.kwargs) -> list[Action]:
        state = self.state
        if state.exit_code is not None:
            return []
        state.now = now
        decide(self, *args, **kwargs)
        self._settle()
        actions, state.actions = state.actions, []
        return actions

    return happens


class Lifecycle:
    """Construct, then tell of each event, `started` first, until ``state.exit_code`` is there.

    Every event begins with its time, in seconds of a clock that never goes back.
    """

    def __init__(self, settings: Settings, models: Sequence[Model], *, processes: bool) -> None:
        """The first of the ``models`` is the default; ``processes`` says whether parts can be killed and replaced."""
        self._settings = settings
        self.state = State(models, processes=processes)
        self._changes = Changes(self.state)
        self._engines = Engines(self.state, self._changes)
        self._crash_loops: dict[str, CrashLoopGuard] = {}
        """Of front-ends, by name."""
        self._give_up_at: float | None = None
        """When a drain has taken too long."""
        self._stopping = False
        """Whether the engines have been told to stop."""

    def __repr__(self) -> str:
        return f"<Lifecycle {self.state.status.state}, {len(self.state.parts)} parts>"

    def _settle(self) -> None:
        """Draws the conclusions that do not depend on which event has made them true."""
        state = self.state
        self._changes.look()
        while leaving.remove_gone(state):  # which may be the room that a change waits for
            self._changes.look()
        self._engines.look()
        if state.giving_up and not state.draining:
            self._drain(0.0, lost=True)
        if state.draining and not state.front_ends:
            self._stop_engines()
        state.tell()

    # Events

    @event
    def started(self, url: str, front_ends: int) -> None:
        """The port is there: ``url`` is what it is called."""
        self.state.begin(url)
        self._engines.start()  # they load while front-ends are imported
        for index in range(front_ends):
            self._start_front_end(f"frontend-{index + 1}")

    @event
    def said(self, number: int, message: Mapping[str, Any]) -> None:
        """A part has sent a ``message`` without descriptors."""
        part = self.state.parts.get(number)
        if part is None:
            return
        part.heard_at = self.state.now
        if isinstance(part, FrontEnd):
            self._front_end_said(part, message)
        else:
            self._engines.said(number, message)

    @event
    def engine_ready(self, number: int, names: dict[str, str], over_budget: str) -> None:
        """An engine takes work. ``names`` is what its ``model`` and its ``weights`` are called.

        ``over_budget`` says what is wrong if all engines together take more memory than they may.
        """
        if number in self.state.engines:
            self.state.parts[number].heard_at = self.state.now
            self._engines.ready(number, names, over_budget)

    @event
    def ended(self, number: int, outcome: str | None) -> None:
        """A part is no more. ``outcome`` is None for one that ended well, else how it ended."""
        front_end = self.state.front_ends.pop(number, None)
        if front_end is not None:
            self._front_end_ended(front_end, outcome)
        elif number in self.state.engines:
            self._engines.ended(number, outcome)

    @event
    def signalled(self, name: str) -> None:
        """A signal of this ``name`` asks the service to end."""
        if self.state.draining:
            self.state.say(f"{name} again: ending at once", logging.WARNING)
            self.state.exit_code = 1
        else:
            self.state.say(f"{name}: draining")
            self._drain(self._settings.drain_delay_ms / 1000)

    @event
    def weights_changed(self, place: int) -> None:
        """The files of the model at ``place`` are others now."""
        self._changes.load(self.state.servables[place], Wish())

    @event
    def load_possible(
        self, load: Load, settings: Settings, devices: Sequence[Device], make_room: bool
    ) -> None:
        """What a `Load` wants is there, and there is memory: ``make_room`` if the kept version ends first."""
        self._changes.begin(load, settings, devices, make_room)

    @event
    def load_refused(self, load: Load, settings: Settings | None, code: str, reason: str) -> None:
        """What a `Load` wants cannot be had: the ``code`` of an error, and the reason in words.

        It counts as a load with these ``settings`` that has failed; None for a slip in what was asked for.
        """
        self._changes.refuse(load, settings, code, reason)

    @event
    def checked(self, version: int, problem: str, found: Mapping[str, Any]) -> None:
        """Known images have been run through the engines of ``version``: ``problem`` is empty where it will do."""
        self._changes.checked(version, problem, found)

    @event
    def shadow_measured(self, refusal: str) -> None:
        """``refusal`` is empty where there is memory for the shadow's engine."""
        self._engines.shadow_measured(refusal)

    @event
    def tick(self) -> None:
        """Time has passed."""
        state = self.state
        if not state.draining:
            self._changes.keep_no_longer()
            leaving.kill_late(state)
        for part in state.parts.values() if state.processes else ():
            silent = state.now - part.heard_at
            if silent > state.patience(part, SILENCE):
                state.kill(part, f"was silent for {silent:.0f} s and was killed")
                part.heard_at = state.now
        if self._give_up_at is not None and state.now >= self._give_up_at:
            state.say("not everything ended within drain_timeout_ms", logging.ERROR)
            state.exit_code = 1

    # Front-ends

    def _front_end_said(self, front_end: FrontEnd, message: Mapping[str, Any]) -> None:
        match message["kind"]:
            case "alive":
                front_end.joined = set(message["joined"])
                if any(message["shadow"]):
                    self.state.tally.add(*message["shadow"])
                lost = front_end.is_lost(set(self.state.offered_engines()), self.state.now)
                if lost and self.state.processes:
                    self.state.kill(front_end, "was not joined to the engine and was killed")
            case "again":
                self._introduce(front_end)
            case "left":
                leaving.left(self.state, front_end.number, message["version"])
            case "order":
                self._changes.ordered(Asker(front_end.number, message["number"]), message)

    def _start_front_end(self, name: str) -> None:
        self._introduce(self.state.start_front_end(name))

    def _introduce(self, front_end: FrontEnd) -> None:
        """Joins it to every engine that takes work and that it has not found to."""
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
            state.say(f"{who}, {guard.short_runs} times in a row; giving up", logging.ERROR)
            state.give_up()
            return
        state.say(f"{who}; another takes its place", logging.ERROR)
        state.status.frontend_restarts += 1
        self._start_front_end(front_end.name)

    # The end

    def _drain(self, delay: float, lost: bool = False) -> None:
        """Ends the service after what was admitted; front-ends take newcomers for another ``delay`` seconds."""
        state = self.state
        state.lost |= lost
        state.enter("draining", "ending after what was admitted")
        state.tell()
        self._changes.fail("the service ends", code="draining")
        self._give_up_at = state.now + delay + self._settings.drain_timeout_ms / 1000 + LAST_GRACE
        state.do(ClosePort())
        for front_end in state.front_ends:
            state.send(front_end, "drain", delay=delay)

    def _stop_engines(self) -> None:
        """Nobody asks engines any more; with the last one the service ends."""
        if not self._stopping:
            self._stopping = True
            for _, _, seat in self.state.seats:
                self.state.stop_engine(seat)
        if not self.state.engines:
            self.state.exit_code = int(self.state.lost)
