"""One engine's life as the supervisor keeps it."""

from __future__ import annotations

import math

from service.engine.arena import MAX_FRONTENDS
from service.options.devices import EngineDevice
from service.settings import Settings
from service.supervisor.lifecycle.parts import Engine
from service.supervisor.lifecycle.seat import Seat


def seat() -> Seat:
    return Seat("engine", EngineDevice("cpu", "cpu"), Settings())


def test_no_two_front_ends_have_one_number_however_often_the_others_are_replaced() -> None:
    engine = Engine(1, "engine", 0.0)
    first = engine.new_link("frontend-1")
    for _ in range(3 * MAX_FRONTENDS):
        number = engine.new_link("frontend-2")
        assert 1 <= number <= MAX_FRONTENDS
        assert number != first


def test_an_engine_may_be_silent_while_it_loads_first_and_not_for_ever_while_it_loads_again() -> None:
    for first_start, patience in ((2.0, 30.0), (60.0, 300.0)):
        mine = seat()
        assert mine.patience(30.0) == math.inf
        mine.begin(Engine(1, "engine", 1.0))
        assert mine.patience(30.0) == math.inf
        mine.ready({}, 1.0 + first_start)
        assert mine.patience(30.0) == 30.0
        mine.leave()
        mine.begin(Engine(2, "engine", 100.0))
        assert mine.patience(30.0) == patience


def test_an_engine_whose_device_fails_while_it_loads_is_followed_by_three_that_try_less() -> None:
    mine = seat()
    assert not mine.worth_a_start
    for number in range(1, 5):
        mine.begin(Engine(number, "engine", 0.0))
        mine.distrusted("no memory")
        assert not mine.serves
        assert mine.worth_a_start == (number <= 3)
        assert mine.leave().distrust == "no memory"
