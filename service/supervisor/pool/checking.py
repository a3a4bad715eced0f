"""The check before a switch: known images through an engine of the old version and all engines of the new one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

from service.supervisor.child import Child
from service.supervisor.lifecycle import actions
from service.supervisor.loop import Loop
from service.supervisor.pool import verdict
from service.supervisor.pool.probe import EngineProbe
from service.supervisor.pool.serving import Serving
from service.supervisor.pool.verdict import Verdict

#: Seconds for the answers to the known images.
_PATIENCE = 60.0


class VersionCheck:
    """One check: `begin` starts it, and ``done`` is called once with the verdict unless `close` comes before."""

    def __init__(
        self,
        action: actions.Check,
        children: Mapping[int, Child],
        serving: Mapping[int, Serving],
        loop: Loop,
        done: Callable[[Verdict], None],
    ) -> None:
        """``children`` and ``serving`` are keyed by the engines' numbers."""
        self._wish = action.wish
        self._taken = action.taken
        self._loop = loop
        self._done = done
        self._began = time.monotonic()

        def probe(engine: int, number: int) -> EngineProbe:
            return EngineProbe(children[engine], serving[engine], number, _PATIENCE)

        self._old = probe(*action.old) if action.old is not None else None
        self._new = [probe(*link) for link in action.new.items()]

    @property
    def _probes(self) -> list[EngineProbe]:
        return [*self._new, *([self._old] if self._old is not None else [])]

    def begin(self) -> None:
        """Begins to listen for the answers."""
        for probe in self._probes:
            self._loop.add_reader(probe.fileno(), partial(self._on_readable, probe))
        self._end_if_done()

    def tick(self, now: float) -> None:
        """Gives up engines that have not answered within `_PATIENCE` seconds."""
        if now - self._began > _PATIENCE:
            for probe in self._probes:
                if not probe.done:
                    probe.give_up(f"did not answer the known images within {_PATIENCE:.0f} s")
            self._end_if_done()

    def close(self) -> None:
        """Ends the check and closes its links."""
        for probe in self._probes:
            self._loop.remove_reader(probe.fileno())
            probe.close()

    def _on_readable(self, probe: EngineProbe) -> None:
        probe.receive_answers()
        if probe.done:
            self._loop.remove_reader(probe.fileno())
        self._end_if_done()

    def _end_if_done(self) -> None:
        if all(probe.done for probe in self._probes):
            found = self._judge()
            self.close()
            self._done(found)

    def _judge(self) -> Verdict:
        found = Verdict()
        for new in self._new:
            found = self._compare(new)
            if found.problem:
                break
        return found

    def _compare(self, new: EngineProbe) -> Verdict:
        old = self._old
        if new.answers is None:
            return Verdict(f"the new engine {new.failed}")
        if new.card.name in self._taken:
            return Verdict(f"another model is called {new.card.name} already; give models names in a file")
        if old is not None and not self._wish.other_classes:
            problem = verdict.classes_problem(old.card, new.card)
            if problem:
                return Verdict(problem)
        before = old.answers if old is not None else None
        return verdict.judge(before, new.answers, self._wish.least_agreement)
