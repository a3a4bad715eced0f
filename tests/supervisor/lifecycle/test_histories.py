"""Random histories of what the supervisor decides; see `histories.py` and `world.py`."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import Phase

from service.supervisor.lifecycle import leaving
from service.supervisor.lifecycle.changes import Changes
from service.supervisor.lifecycle.engines import Engines
from service.supervisor.lifecycle.lifecycle import Lifecycle
from service.supervisor.lifecycle.state import State
from tests.engine import histories
from tests.supervisor.lifecycle.histories import Histories


def test_random_histories_keep_every_promise() -> None:
    assert histories.run(Histories, 3_000) >= 3_000


def nothing(*args: Any, **kwargs: Any) -> Any:
    """What a decision that was forgotten does."""


#: Decisions that are broken: where, which, and by what.
BROKEN = {
    "an engine that died is not replaced": (Engines, "_replace", nothing),
    "a front-end hears nothing": (State, "broadcast_status", nothing),
    "a new front-end is joined to no engine": (Lifecycle, "_connect", nothing),
    "engines stop before front-ends": (
        Lifecycle,
        "_drain",
        lambda self, delay, lost=False: (self.state.enter("draining", ""), self._stop_engines()),
    ),
    "a version answers before front-ends have joined it": (Changes, "_everyone_joined", lambda *_: True),
    "a version ends while somebody waits for it": (
        leaving,
        "_stop_if_left",
        lambda state, version: [state.stop_engine(seat) for seat in version.seats],
    ),
    "an order is not answered": (Changes, "_reply", nothing),
}


@pytest.mark.parametrize("what", BROKEN)
def test_the_histories_see(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*BROKEN[what])
    with pytest.raises((AssertionError, ExceptionGroup)):
        histories.run(Histories, 20_000, database=None, report_multiple_bugs=False, phases=[Phase.generate])
