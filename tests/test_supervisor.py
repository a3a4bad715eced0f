"""What of the supervisor can be seen without processes."""

import math
from dataclasses import dataclass
from typing import Any

import pytest

from service.engine.arena import MOST_FRONTENDS
from service.settings import Settings
from service.supervisor import Supervisor


def test_no_two_front_ends_have_one_number_however_often_the_others_are_replaced() -> None:
    supervisor = Supervisor(Settings())
    supervisor._numbers = {"frontend-1": supervisor._free_number("frontend-1")}
    for _ in range(3 * MOST_FRONTENDS):
        number = supervisor._numbers["frontend-2"] = supervisor._free_number("frontend-2")
        assert 1 <= number <= MOST_FRONTENDS
        assert number != supervisor._numbers["frontend-1"]
    for end in supervisor._wake:
        end.close()
    supervisor._selector.close()


@dataclass
class Front:
    """As much of a `Child` as the supervisor looks at."""

    name: str = "frontend-1"
    introduced_at: float = 0.0
    unjoined: int = 0
    sentence: str | None = None
    killed: int = 0

    def kill(self) -> None:
        self.killed += 1


def test_a_front_end_that_does_not_find_to_its_engine_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    supervisor = Supervisor(Settings())
    supervisor._serving, supervisor._numbers = {}, {"frontend-1": 7}
    front: Any = Front()
    for beat in range(10):
        now = float(beat)
        supervisor._check_joined(front, 7 if beat % 3 == 0 else 6)  # late news of the engine before it
    assert not front.killed
    for beat in range(10, 13):
        now = float(beat)
        supervisor._check_joined(front, 0)
    assert front.killed == 1
    front.introduced_at, front.unjoined = now, 0
    for _ in range(10):  # it was only just told
        supervisor._check_joined(front, 0)
    assert front.killed == 1
    supervisor._serving = None  # nobody can find to an engine that there is not
    now = 100.0
    supervisor._check_joined(front, 0)
    assert front.killed == 1
    for end in supervisor._wake:
        end.close()
    supervisor._selector.close()


def test_an_engine_may_be_silent_while_it_loads_first_and_not_for_ever_while_it_loads_again() -> None:
    supervisor = Supervisor(Settings())
    engine: Any = Front("engine")
    supervisor._engine = engine
    assert supervisor._patience(engine) == math.inf
    supervisor._was_ready, supervisor._first_start = True, 2.0
    assert supervisor._patience(engine) == 30.0
    supervisor._first_start = 60.0
    assert supervisor._patience(engine) == 300.0
    supervisor._serving = {}
    assert supervisor._patience(engine) == supervisor._patience(Front()) == 30.0  # type: ignore[arg-type]
    for end in supervisor._wake:
        end.close()
    supervisor._selector.close()
