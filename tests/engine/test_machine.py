"""Random histories of clients, arena, core and batcher together; see `machine.py`."""

from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import Phase, strategies
from hypothesis.stateful import rule

from service.api.served import Models, Served
from service.engine.connection import Connection
from service.engine.core import EngineCore
from service.images.decoders.threads import ThreadWriting
from tests.engine import histories
from tests.engine.fleet import Fleet
from tests.engine.histories import Counted
from tests.engine.machine import Service

#: A defect that was put in on purpose need not be shrunk.
_GENERATE = [Phase.generate]


def test_random_histories_lose_nothing() -> None:
    assert histories.run(Service, 6_000) >= 6_000


def test_the_machine_sees_a_slot_that_comes_free_while_a_thread_writes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ThreadWriting, "abandon", lambda self, callback: callback())
    _breaks()


def test_the_machine_sees_a_reply_that_gets_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EngineCore, "_reply", lambda self, slots, outcome: None)
    _breaks()


def test_the_machine_sees_a_slot_that_never_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "leave", lambda self, slot, writing, hung_up: None)
    _breaks()


class Draws(Counted):
    """Keeps what was drawn for it."""

    drawn: ClassVar[list[int]] = []

    @rule(number=strategies.integers())
    def draw(self, number: int) -> None:
        self.count()
        self.drawn.append(number)


def test_every_round_of_histories_is_another_one() -> None:
    steps = histories.run(Draws, 1)
    first = Draws.drawn[:]
    Draws.drawn.clear()
    assert histories.run(Draws, steps + 1) > steps
    assert Draws.drawn[len(first) :] not in ([], first)


def _breaks(machine: type[Counted] = Service) -> None:
    """Ends with the first history that shows it, after some hundred steps as a rule."""
    with pytest.raises((AssertionError, ExceptionGroup)):
        histories.run(machine, 20_000, database=None, report_multiple_bugs=False, phases=_GENERATE)


def test_random_histories_of_several_engines_and_switches_lose_nothing() -> None:
    assert histories.run(Fleet, 3_000) >= 3_000


def test_the_fleet_sees_a_version_that_is_let_go_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Served, "idle", True)
    _breaks(Fleet)


def test_the_fleet_sees_an_engine_that_is_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Models, "current", lambda self, place=0: next(iter(self._served.values()), None))
    _breaks(Fleet)
