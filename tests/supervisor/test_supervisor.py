"""What of the supervisor can be seen without processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from service.settings import Settings
from service.supervisor.supervisor import Supervisor


@dataclass
class Front:
    """As much of a `Child` as the supervisor looks at."""

    name: str = "frontend-1"
    introduced_at: float = 0.0
    unjoined: int = 0
    sentence: str | None = None
    killed: int = 0
    joined: set[int] = field(default_factory=set)

    def kill(self) -> None:
        self.killed += 1


@contextmanager
def supervisor_with(engine: int) -> Iterator[Supervisor]:
    """One whose engine, with this number, takes work."""
    supervisor = Supervisor(Settings())
    ((_, _, seat),) = supervisor._pool
    seat.engine, serving = engine, object()
    seat.serving = serving  # type: ignore[assignment]
    yield supervisor
    for end in supervisor._wake:
        end.close()
    supervisor._selector.close()


def test_a_front_end_that_does_not_find_to_its_engine_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with supervisor_with(engine=7) as supervisor:
        front: Any = Front()
        for beat in range(10):
            now = float(beat)
            # late news of the engine before it
            supervisor._check_joined(front, {7} if beat % 3 == 0 else {6})
        assert not front.killed
        for beat in range(10, 13):
            now = float(beat)
            supervisor._check_joined(front, set())
        assert front.killed == 1
        front.introduced_at, front.unjoined = now, 0
        for _ in range(10):  # it was only just told
            supervisor._check_joined(front, set())
        assert front.killed == 1
        ((_, _, seat),) = supervisor._pool
        seat.serving = None  # nobody can find to an engine that there is not
        now = 100.0
        supervisor._check_joined(front, set())
        assert front.killed == 1
