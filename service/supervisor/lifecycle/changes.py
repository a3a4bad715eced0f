"""Changes of a model's version while it serves: loads and rollbacks, one at a time. `switch` orders their steps."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from service.options.devices import EngineDevice
from service.options.nearest import did_you_mean, one_of
from service.settings import Settings
from service.supervisor.lifecycle import leaving
from service.supervisor.lifecycle.actions import Asker, Check, EndCheck, Load, Show, Wish
from service.supervisor.lifecycle.change import Change, describe
from service.supervisor.lifecycle.state import State
from service.supervisor.lifecycle.switch import Stage, Switch, SwitchStep
from service.supervisor.lifecycle.versions import ModelVersion, Servable

#: Seconds without progress after which a load is given up.
LOAD_PATIENCE = 600.0
#: The supervisor's name among an engine's front-ends.
_SUPERVISOR = "supervisor"


class Changes:
    """Decides about changes. Clients' orders come in by `ordered`, news of engines by the methods below it."""

    def __init__(self, state: State) -> None:
        self._state = state
        state.status.switches = {"switched": 0, "failed": 0, "rolled_back": 0}

    def of(self, version: ModelVersion) -> bool:
        """True if ``version`` is being loaded by a change."""
        change = self._state.change
        return change is not None and change.version is version

    # What is asked for

    def ordered(self, asker: Asker, message: Mapping[str, Any]) -> None:
        """Handles a client's order for a load or a rollback."""
        name, models = message["name"], self._state.asked
        found = models[:1] if name is None else [model for model in models if model.called == name]
        if not found:
            names = [model.called for model in models]
            words = f"there is no such model, {name[:100]!r}; there is {one_of(names)}"
            self._reply(asker, "not_found", words + did_you_mean(name, names))
        elif message["action"] == "rollback":
            self._roll_back(found[0], asker)
        else:
            wish = Wish(message["settings"], message["other_classes"], message["least_agreement"])
            self.load(found[0], wish, asker)

    def load(self, servable: Servable, wish: Wish, asker: Asker | None = None) -> None:
        """Begins to load another version, which then replaces the one that answers."""
        if not self._refused(servable, asker):
            self._state.do(Load(servable, wish, asker))

    def refuse(self, load: Load, settings: Settings | None, code: str, reason: str) -> None:
        """Refuses a load. With ``settings`` it counts as a failed one."""
        if settings is not None:
            self._end("failed", settings, reason, self._state.now)
        self._reply(load.asker, code, reason)

    def begin(self, load: Load, settings: Settings, devices: Sequence[EngineDevice], make_room: bool) -> None:
        """Begins a load that has been found possible."""
        state, servable = self._state, load.servable
        if self._refused(servable, load.asker):
            return
        version = servable.coming = state.new_version(settings, devices)
        switch = Switch(len(version.seats))
        state.change = Change(load, version, switch, state.now, state.now)
        state.log(f"loading weights {settings.weights} of {settings.model} beside the model that serves")
        self._take_step(switch.begin(make_room))

    def _roll_back(self, servable: Servable, asker: Asker) -> None:
        if self._refused(servable, asker):
            return
        before, kept = servable.current, servable.kept
        if kept is None or not kept.complete:
            words = (
                "no earlier version is kept: there was no switch, or it was longer ago than keep_previous_ms"
            )
            self._reply(asker, "conflict", words)
            return
        servable.kept = None
        self._show(servable, kept)
        self._state.log(f"back to weights {kept.settings.weights} of {kept.settings.model}")
        self._end("rolled_back", kept.settings, "", self._state.now)
        self._reply(asker, None, "", {**kept.names, "previous": before.names})

    def _refused(self, servable: Servable, asker: Asker | None) -> bool:
        """True, with an answer to the asker, if nothing can be changed now."""
        if self._state.draining:
            self._reply(asker, "draining", "the service is draining and about to end")
        elif self._state.change is not None:
            self._reply(asker, "conflict", "another version is being loaded; /healthz says how far it is")
        elif not servable.current.serving and not servable.was_ready:
            words = "the first model is not loaded yet; /healthz says how far it is"
            self._reply(asker, "not_ready", words)
        else:
            return False
        return True

    def _reply(
        self, asker: Asker | None, code: str | None, words: str, result: Mapping[str, Any] | None = None
    ) -> None:
        if asker is not None:
            # Before the answer, so that /healthz shows nothing older to a client that has it.
            self._state.broadcast_status()
            told = {"number": asker.order, "code": code, "words": words, "result": dict(result or {})}
            self._state.send(asker.front_end, "done", **told)

    # What happens

    def moved(self, detail: str, progress: Mapping[str, int | None] | None = None) -> None:
        """Notes the progress of the load."""
        change = self._state.change
        if change is not None:
            change.moved, change.detail, change.progress = self._state.now, detail, progress

    def ready(self) -> None:
        """Notes that one of the new engines is ready."""
        change = self._state.change
        if change is not None:
            self._take_step(change.switch.ready())

    def checked(self, version: int, problem: str, found: Mapping[str, Any]) -> None:
        """Takes the result of the known images for the engines of ``version``."""
        change = self._state.change
        if change is not None and change.version.number == version:
            change.found, change.detail = found, ""
            self._take_step(change.switch.checked(problem))

    def fail(self, reason: str, code: str = "load_failed") -> None:
        """Ends the load, since a new engine has ended or cannot start, or the service ends."""
        change = self._state.change
        if change is not None:
            self._take_step(change.switch.fail(reason), code)

    def advance(self) -> None:
        """Takes the next step if its condition holds; gives up a load that makes no progress."""
        change = self._state.change
        if change is None:
            return
        if change.switch.stage is Stage.MAKING_ROOM and not change.load.servable.leaving:
            self._take_step(change.switch.room_made())
        elif change.switch.stage is Stage.CHECKING:
            self._take_step(change.switch.joined(self._everyone_joined(change.version)))
        if self._state.now - change.moved > LOAD_PATIENCE:
            self.fail(f"the load has made no progress for {LOAD_PATIENCE:.0f} s")

    def _everyone_joined(self, version: ModelVersion) -> bool:
        """True if every front-end has joined every engine of ``version``, and none of these is about to end."""
        if not version.complete:
            return False
        engines = {seat.engine.number for seat in version.seats if seat.engine is not None}
        return all(engines <= front_end.joined for front_end in self._state.front_ends.values())

    def lost_kept(self, servable: Servable) -> None:
        """Ends the version that was kept for a rollback, since one of its engines has ended."""
        assert servable.kept is not None
        line = "the version that was kept for a rollback has lost an engine and is let go"
        self._state.log(line, logging.WARNING)
        leaving.begin(self._state, servable, servable.kept)

    def end_expired(self) -> None:
        """Ends versions that have been kept for ``keep_previous_ms``."""
        for servable in self._state.servables:
            if servable.kept is not None and self._state.now >= servable.kept.until:
                self._state.log("the version before this one is not kept any longer (keep_previous_ms)")
                leaving.begin(self._state, servable, servable.kept)

    # What is done

    def _take_step(self, action: SwitchStep | None, code: str = "load_failed") -> None:
        change = self._state.change
        if action is None or change is None:
            return
        match action:
            case SwitchStep.FREE:
                if change.load.servable.kept is not None:
                    leaving.begin(self._state, change.load.servable, change.load.servable.kept)
            case SwitchStep.START:
                self._state.start_engine(change.version.seats[0])
            case SwitchStep.CHECK:
                self._check(change)
            case SwitchStep.SHOW:
                self._finish(change)
            case SwitchStep.ABANDON:
                self._abandon(change, code)

    def _check(self, change: Change) -> None:
        new = [seat.engine for seat in change.version.seats if seat.engine is not None]
        old = [seat.engine for seat in change.load.servable.current.serving[:1] if seat.engine is not None]
        own = change.load.servable.name is not None
        others = [one.called for one in self._state.asked if one is not change.load.servable]
        check = Check(
            change.version.number,
            change.load.wish,
            {engine.number: engine.new_link(_SUPERVISOR) for engine in new},
            (old[0].number, old[0].new_link(_SUPERVISOR)) if old else None,
            frozenset() if own else frozenset(others),
        )
        self._state.do(check)
        self.moved("known images")

    def _finish(self, change: Change) -> None:
        servable, before = change.load.servable, change.load.servable.current
        servable.coming = self._state.change = None
        self._show(servable, change.version)
        settings, seconds = change.version.settings, self._state.now - change.began
        self._state.log(
            f"weights {settings.weights} of {settings.model} answer now, after {seconds:.1f} s beside the model before"
        )
        self._end("switched", settings, "", change.began, change.found)
        result = {"previous": before.names, "seconds": round(seconds, 3), **change.found}
        self._reply(change.load.asker, None, "", {**change.version.names, **result})

    def _show(self, servable: Servable, version: ModelVersion) -> None:
        """Lets ``version`` answer from now on, and keeps the previous one for ``keep_previous_ms``."""
        if servable.kept is not None:
            leaving.begin(self._state, servable, servable.kept)
        servable.kept, servable.current = servable.current, version
        version.answered, version.until = True, math.inf
        self._state.do(Show(servable.place, version.number))
        keep = version.settings.keep_previous_ms / 1000
        servable.kept.until = self._state.now + keep
        if keep == 0 or not servable.kept.complete:
            leaving.begin(self._state, servable, servable.kept)

    def _abandon(self, change: Change, code: str) -> None:
        self._state.change = None
        self._state.do(EndCheck())
        settings, reason = change.version.settings, change.switch.reason
        self._state.log(f"weights {settings.weights} were not loaded: {reason}", logging.ERROR)
        leaving.begin(self._state, change.load.servable, change.version)
        self._end("failed", settings, reason, change.began)
        self._reply(change.load.asker, code, reason)

    def _end(
        self,
        outcome: str,
        settings: Settings,
        reason: str,
        began: float,
        found: Mapping[str, Any] | None = None,
    ) -> None:
        state = self._state
        state.status.switches[outcome] += 1
        seconds = round(state.now - began, 3)
        state.last_change = {**describe(outcome, settings, reason), "seconds": seconds, **(found or {})}
