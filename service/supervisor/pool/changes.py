"""Changes of a model's version while it serves: loads and rollbacks. `leaving` ends what is done with.

A `switch.Switch` decides; this does it. One change at a time.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from service import settings as all_settings
from service.errors import CheckpointError, ConfigurationError
from service.host.machine import free_memory
from service.supervisor.pool import room, watching
from service.supervisor.pool.budget import Budget
from service.supervisor.pool.checking import Check, Wish
from service.supervisor.pool.engines import Engines
from service.supervisor.pool.leaving import Leaving
from service.supervisor.pool.switch import Action, Stage, Switch
from service.supervisor.pool.verdict import Verdict
from service.supervisor.pool.versions import Servable, Version, called

if TYPE_CHECKING:
    from service.settings import Settings

log = logging.getLogger(__name__)

#: Seconds without any progress of a load, after which it is given up.
_LOAD_PATIENCE = 600.0

#: Told once how a change ended: the code of an error, or None, the words, and what there is to say of it.
Reply = Callable[[str | None, str, dict[str, Any]], None]


@dataclass(eq=False)
class Change:
    """The one that is under way."""

    servable: Servable
    version: Version
    switch: Switch
    wish: Wish
    reply: Reply
    began: float
    moved: float
    """When it last got on."""
    detail: str = ""
    progress: dict[str, int | None] | None = None
    check: Check | None = None
    """None before the new engines are ready."""
    verdict: Verdict = field(default_factory=Verdict)


class Changes:
    """Part of the `Pool`, which tells it what happens."""

    def __init__(self, pool: Engines, leaving: Leaving, budget: Budget) -> None:
        self._pool = pool
        self._leaving = leaving
        self._budget = budget
        self._change: Change | None = None
        self.last: dict[str, Any] | None = None
        """How the last change ended."""
        self.counts = {"switched": 0, "failed": 0, "rolled_back": 0}

    @property
    def under_way(self) -> bool:
        return self._change is not None

    def to_json(self) -> dict[str, Any] | None:
        """The change that is under way, or how the last one ended, for people."""
        change = self._change
        if change is None:
            return self.last
        settings = change.version.settings
        return {
            "stage": change.switch.stage,
            "model": settings.model,
            "weights": called(settings.weights),
            "detail": change.detail,
            "progress": change.progress,
        }

    # What is asked for

    def load(self, servable: Servable, wish: Wish, reply: Reply) -> None:
        """Loads another version beside the one that answers, and lets it take its place."""
        if refusal := self._refusal(servable):
            reply(*refusal, {})
            return
        from service.models.checkpoints import places  # imports what reads checkpoints

        try:
            settings = self._settings(servable, wish)
            places.check(settings.weights, settings.labels)
        except ConfigurationError as error:
            reply("invalid_parameter", str(error), {})
            return
        except CheckpointError as error:
            self._count_failure(servable.current.settings, str(error))
            reply("load_failed", str(error), {})
            return
        decision = self.room_for(servable, settings)
        if decision.refusal:
            self._count_failure(settings, decision.refusal)
            reply("not_enough_memory", decision.refusal, {})
            return
        now = time.monotonic()
        version = self._pool.new_version(settings)
        servable.coming = version
        switch = Switch(len(version.seats))
        self._change = Change(servable, version, switch, wish, reply, now, now)
        log.info("loading weights %s of %s beside the model that serves", settings.weights, settings.model)
        self._do(switch.begin(decision.make_room))
        self._pool.tell()

    def reload(self, servable: Servable) -> None:
        """Loads the same weights once more; nobody waits for it."""
        self.load(servable, Wish({}), lambda code, words, result: None)

    def rollback(self, servable: Servable, reply: Reply) -> None:
        """Lets the version answer again that did before the last switch."""
        if refusal := self._refusal(servable):
            reply(*refusal, {})
            return
        kept = servable.kept
        if kept is None or not kept.complete:
            words = (
                "no earlier version is kept: there was no switch, or it was longer ago than keep_previous_ms"
            )
            reply("conflict", words, {})
            return
        before = servable.current
        servable.kept = None
        self._show(servable, kept)
        log.info("back to weights %s of %s", kept.settings.weights, kept.settings.model)
        self._end("rolled_back", kept.settings, "", time.monotonic(), {})
        reply(None, "", {**_named(kept), "previous": _named(before)})

    def cancel(self, reason: str) -> None:
        """The service ends: a load is not waited for."""
        if self._change is not None:
            self._do(self._change.switch.fail(reason), code="draining")

    def _refusal(self, servable: Servable) -> tuple[str, str] | None:
        if self._pool.draining:
            return "draining", "the service is draining and about to end"
        if self._change is not None:
            return "conflict", "another version is being loaded; /healthz says how far it is"
        if not servable.current.serving and not any(seat.was_ready for seat in servable.current.seats):
            return "not_ready", "the first model is not loaded yet; /healthz says how far it is"
        return None

    def _settings(self, servable: Servable, wish: Wish) -> Settings:
        # Without what nobody has set: it stays so, and a file may say which of the twelve it is.
        current = servable.current.settings.model_dump(exclude_unset=True)
        return all_settings.read({**current, **wish.settings}, spelled=str)

    def room_for(self, servable: Servable, settings: Settings) -> room.Decision:
        """Whether a model with these settings fits beside what there is; ``servable`` is one that is known."""
        taken = [room.resident(seat.child.pid) for seat in servable.current.serving if seat.child]
        if not taken or not self._pool.host.processes:
            return room.Decision()
        kept = servable.kept.seats if servable.kept is not None else []
        need = room.needed(
            max(taken),
            room.parameters_of(servable.current.settings.model),
            room.parameters_of(settings.model),
        )
        there = room.Room(
            free_memory(),
            sum(room.resident(seat.child.pid) for seat in kept if seat.child),
            self._budget.left(),
        )
        return room.decide(need * len(servable.current.seats), there)

    def room_made(self) -> None:
        """The last version that was leaving has ended."""
        if self._change is not None:
            self._do(self._change.switch.room_made())

    # What happens

    def of(self, version: Version) -> bool:
        """Whether ``version`` is the one that is being loaded."""
        return self._change is not None and self._change.version is version

    def moved(self, detail: str, progress: dict[str, int | None] | None = None) -> None:
        """The load gets on."""
        if self._change is not None:
            self._change.moved = time.monotonic()
            self._change.detail, self._change.progress = detail, progress
            self._pool.tell()

    def ready(self) -> None:
        """One of the new engines is."""
        if self._change is not None:
            self._do(self._change.switch.ready())

    def failed(self, reason: str) -> None:
        """One of the new engines has ended, or cannot start."""
        if self._change is not None:
            self._do(self._change.switch.fail(reason))

    def look_who_joined(self) -> None:
        """A front-end has said which engines it is joined to, or has ended."""
        change = self._change
        if change is None or change.switch.stage is not Stage.CHECKING:
            return
        engines = {seat.engine for seat in change.version.seats}
        everyone = all(engines <= child.joined for child in self._pool.host.front_ends)
        self._do(change.switch.joined(everyone))

    def lost_kept(self, servable: Servable) -> None:
        """An engine of the version that was kept has ended: there is nothing to go back to."""
        if servable.kept is not None:
            log.warning("the version that was kept for a rollback has lost an engine and is let go")
            self._leaving.begin(servable, servable.kept)

    def tick(self, now: float) -> None:
        """Whatever is due."""
        change = self._change
        if change is not None and now - change.moved > _LOAD_PATIENCE:
            self.failed(f"the load has not got on for {_LOAD_PATIENCE:.0f} s")
        if change is not None and change.check is not None:
            change.check.tick(now)
        for servable in self._pool.servables:
            if not self.under_way and watching.have_changed(servable, now):
                self.reload(servable)
            if servable.kept is not None and now >= servable.kept.until:
                log.info("the version before this one is not kept any longer (keep_previous_ms)")
                self._leaving.begin(servable, servable.kept)
        self._leaving.tick(now)

    # What is done

    def _do(self, action: Action | None, code: str = "load_failed") -> None:
        change = self._change
        if action is None or change is None:
            return
        match action:
            case Action.FREE:
                assert change.servable.kept is not None
                self._leaving.begin(change.servable, change.servable.kept)
            case Action.START:
                self._pool.start_version(change.version)
            case Action.CHECK:
                self._check(change)
            case Action.SHOW:
                self._finish(change)
            case Action.ABANDON:
                self._abandon(change, code)

    def _check(self, change: Change) -> None:
        change.moved, change.detail = time.monotonic(), "known images"
        change.check = Check(self._pool, change.servable, change.version, change.wish, self._checked)
        self.look_who_joined()
        change.check.begin()

    def _checked(self, found: Verdict) -> None:
        if self._change is not None:
            self._change.verdict, self._change.detail = found, ""
            self._do(self._change.switch.checked(found.problem))

    def _finish(self, change: Change) -> None:
        servable, before = change.servable, change.servable.current
        servable.coming = None
        self._show(servable, change.version)
        settings = change.version.settings
        seconds = time.monotonic() - change.began
        log.info(
            "weights %s of %s answer now, after %.1f s beside the model before",
            *(settings.weights, settings.model, seconds),
        )
        told = change.verdict.to_json()
        self._change = None
        self._end("switched", settings, "", change.began, told)
        result = {**_named(change.version), "previous": _named(before), "seconds": round(seconds, 3), **told}
        change.reply(None, "", result)

    def _show(self, servable: Servable, version: Version) -> None:
        """Lets ``version`` answer from now on, and keeps the one before for a time."""
        now = time.monotonic()
        if servable.kept is not None:
            self._leaving.begin(servable, servable.kept)
        servable.kept, servable.current = servable.current, version
        version.answered, version.until = True, math.inf
        self._pool.board.show(servable.place, version.number)
        keep = version.settings.keep_previous_ms / 1000
        servable.kept.until = now + keep
        if keep == 0 or not servable.kept.complete:
            self._leaving.begin(servable, servable.kept)
        self._pool.look()

    def _abandon(self, change: Change, code: str) -> None:
        if change.check is not None:
            change.check.close()
        self._change = None
        change.servable.coming = None
        reason = change.switch.reason
        log.error("weights %s were not loaded: %s", change.version.settings.weights, reason)
        self._count_failure(change.version.settings, reason, change.began)
        self._leaving.begin(change.servable, change.version)
        change.reply(code, reason, {})

    def _count_failure(self, settings: Settings, reason: str, began: float | None = None) -> None:
        self._end("failed", settings, reason, began or time.monotonic(), {})

    def _end(
        self, outcome: str, settings: Settings, reason: str, began: float, told: Mapping[str, Any]
    ) -> None:
        self.counts[outcome] += 1
        self.last = {
            "stage": outcome,
            "model": settings.model,
            "weights": called(settings.weights),
            "detail": reason,
            "progress": None,
            "seconds": round(time.monotonic() - began, 3),
            **told,
        }
        self._pool.tell()


def _named(version: Version) -> dict[str, str]:
    """What a version is called in answers."""
    for seat in version.seats:
        if seat.serving is not None:
            card = seat.serving.read_card()
            return {"model": card.name, "weights": card.weights}
    return {"model": version.settings.model, "weights": called(version.settings.weights)}
