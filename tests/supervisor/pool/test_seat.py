"""One engine's life as the supervisor keeps it."""

import math
from typing import Any

from service.engine.arena import MAX_FRONTENDS
from service.options.devices import Device
from service.settings import Settings
from service.supervisor.pool.seat import Seat


def seat() -> Seat:
    return Seat("engine", Device("cpu", "cpu"), Settings())


def test_no_two_front_ends_have_one_number_however_often_the_others_are_replaced() -> None:
    mine = seat()
    mine._numbers = {"frontend-1": mine.free_number("frontend-1")}
    for _ in range(3 * MAX_FRONTENDS):
        number = mine._numbers["frontend-2"] = mine.free_number("frontend-2")
        assert 1 <= number <= MAX_FRONTENDS
        assert number != mine._numbers["frontend-1"]


def test_an_engine_may_be_silent_while_it_loads_first_and_not_for_ever_while_it_loads_again() -> None:
    mine = seat()
    assert mine.patience(30.0) == math.inf
    mine.was_ready, mine.first_start = True, 2.0
    assert mine.patience(30.0) == 30.0
    mine.first_start = 60.0
    assert mine.patience(30.0) == 300.0
    serving: Any = object()
    mine.serving = serving
    assert mine.patience(30.0) == 30.0


def test_an_engine_whose_device_fails_while_it_loads_is_followed_by_three_that_try_less() -> None:
    mine = seat()
    assert not mine.worth_a_start
    for number in range(1, 5):
        mine.begin(number, None)  # type: ignore[arg-type]
        mine.distrusted("no memory")
        assert mine.worth_a_start == (number <= 3)
        assert mine.leave() == "no memory"
        assert not mine.distrust
