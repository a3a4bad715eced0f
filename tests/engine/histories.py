"""Runs a state machine for a number of steps: thousands in the default run, a million in `make drill`."""

from __future__ import annotations

import itertools
import time
from typing import Any

from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

#: Steps of one history, and histories between two looks at how many steps there were.
_LENGTH, _HISTORIES = 60, 30
_SETTINGS = settings(
    max_examples=_HISTORIES,
    stateful_step_count=_LENGTH,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class Counted(RuleBasedStateMachine):
    """A machine that counts its steps, of all histories in this process, by calling `count` in an invariant."""

    steps = 0

    @classmethod
    def count(cls) -> None:
        cls.steps += 1


def run(machine: type[Counted], steps: int, seconds: float = float("inf"), **options: Any) -> int:
    """Runs random histories until there were ``steps`` steps, or ``seconds`` have passed; says how many there were.

    Raises what a broken promise raises, with the shortest history that shows it.
    """
    machine.steps = 0
    give_up = time.monotonic() + seconds
    for number in itertools.count():
        if machine.steps >= steps or time.monotonic() >= give_up:
            break
        if _SETTINGS.derandomize:  # without a seed of its own each round would be the first one again
            seed(number)(machine)
        run_state_machine_as_test(machine, settings=settings(_SETTINGS, **options))
    return machine.steps
