"""Random histories of clients, arena, core and batcher together; see `machine.py`."""

from __future__ import annotations

import pytest
from hypothesis import Phase

from service.engine.connection import Connection
from service.engine.core import EngineCore
from service.engine.writing import ThreadWriting
from tests.engine import histories
from tests.engine.machine import Service

#: A defect that was put in on purpose need not be shrunk.
_GENERATE = [Phase.generate]


def test_random_histories_lose_nothing() -> None:
    assert histories.run(Service, 8_000) >= 8_000


def test_the_machine_sees_a_slot_that_comes_free_while_a_thread_writes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ThreadWriting, "afterwards", lambda self, callback: callback())
    _breaks()


def test_the_machine_sees_a_reply_that_gets_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EngineCore, "_reply", lambda self, slots, outcome: None)
    _breaks()


def test_the_machine_sees_a_slot_that_never_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "leave", lambda self, slot, writing, hung_up: None)
    _breaks()


def _breaks() -> None:
    """Ends with the first history that shows it, after some hundred steps as a rule."""
    with pytest.raises((AssertionError, ExceptionGroup)):
        histories.run(Service, 20_000, database=None, report_multiple_bugs=False, phases=_GENERATE)
