"""Known images through the old version's engine and every new one: what has to be seen before a switch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from service.supervisor.pool import verdict
from service.supervisor.pool.canary import Canary
from service.supervisor.pool.engines import Engines
from service.supervisor.pool.verdict import Verdict
from service.supervisor.pool.versions import Servable, Version

#: Seconds for the known images, on both sides.
_PATIENCE = 60.0


@dataclass(frozen=True)
class Wish:
    """What a load asks for beside settings."""

    settings: Mapping[str, Any]
    """By name: those that are to be other than they are."""
    other_classes: bool = False
    least_agreement: float = 0.0


class Check:
    """Construct, `begin`; ``done`` gets the verdict, once, unless `close` comes before."""

    def __init__(
        self, pool: Engines, servable: Servable, version: Version, wish: Wish, done: Callable[[Verdict], None]
    ) -> None:
        self._pool = pool
        self._servable = servable
        self._version = version
        self._wish = wish
        self._done = done
        self._began = time.monotonic()
        self._canaries: list[Canary] = []
        """Of the old version if it serves, and of every new engine."""

    def begin(self) -> None:
        """Sends the images off."""
        for seat in [*self._servable.current.serving[:1], *self._version.seats]:
            canary = Canary(seat, _PATIENCE)
            self._canaries.append(canary)
            self._pool.host.listen_to(canary.fileno(), partial(self._heard, canary))
        self._look()

    def tick(self, now: float) -> None:
        """Does not wait for ever."""
        if now - self._began > _PATIENCE:
            for canary in self._canaries:
                if not canary.done:
                    canary.give_up(f"did not answer the known images within {_PATIENCE:.0f} s")
            self._look()

    def close(self) -> None:
        """Nobody wants to know any more."""
        for canary in self._canaries:
            self._pool.host.stop_listening_to(canary.fileno())
            canary.close()
        self._canaries.clear()

    def _heard(self, canary: Canary) -> None:
        canary.hear()
        if canary.done:
            self._pool.host.stop_listening_to(canary.fileno())
        self._look()

    def _look(self) -> None:
        if not self._canaries or not all(canary.done for canary in self._canaries):
            return
        found = self._judge()
        self.close()
        self._done(found)

    def _judge(self) -> Verdict:
        by_seat = {canary.seat: canary for canary in self._canaries}
        old = next((by_seat[seat] for seat in self._servable.current.seats if seat in by_seat), None)
        found = Verdict()
        for seat in self._version.seats:
            found = self._compare(old, by_seat[seat])
            if found.problem:
                break
        return found

    def _compare(self, old: Canary | None, new: Canary) -> Verdict:
        if new.answers is None:
            return Verdict(f"the new engine {new.failed}")
        name = new.card.name
        if self._servable.name is None and name in self._pool.names(self._servable):
            return Verdict(f"another model is called {name} already; give models names in a file")
        if old is not None and not self._wish.other_classes:
            problem = verdict.classes_problem(old.card, new.card)
            if problem:
                return Verdict(problem)
        return verdict.judge(
            old.answers if old is not None else None, new.answers, self._wish.least_agreement
        )
