"""What is decided about one part or a few, step by step."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from service.supervisor.lifecycle.lifecycle import LAST_GRACE, SILENCE
from tests.supervisor.lifecycle.world import Engine, FrontEnd, World


def ready_world(**options: Any) -> tuple[World, FrontEnd, Engine]:
    """One whose first engine takes work, and whose first front-end has joined it."""
    world = World(**options)
    world.now = 1.0
    (front_end, *_), (engine, *_) = world.front_ends.values(), world.engines.values()
    world.ready(engine)
    join(world, front_end)
    return world, front_end, engine


def join(world: World, front_end: FrontEnd) -> None:
    front_end.links = dict.fromkeys(front_end.links, True)
    world.beat(front_end)


def wait(world: World, seconds: int, *silent: object) -> None:
    """Everybody but who is ``silent`` says each second that it is alive."""
    for _ in range(seconds):
        world.now += 1.0
        for process in world.processes:
            if process not in silent and not process.dead and not world.over:
                world.beat(process)
        world.tell("tick")


# Crash loops: whatever dies again and again ends the service, after few starts, and not before.


@given(st.lists(st.floats(0.0, 4.9), min_size=5, max_size=5), st.integers(1, 3))
def test_a_front_end_that_cannot_live_ends_the_service(lives: list[float], front_ends: int) -> None:
    world = World(front_ends=front_ends)
    for life in lives:
        assert not world.over
        world.now += life
        dying = next(one for one in world.front_ends.values() if one.name == "frontend-1")
        world.die(dying, "ended with exit code 1")
        world.reap(dying)
    assert world.life.state.exit_code == 1
    assert "5 times in a row; giving up" in world.log[-1]


@given(st.lists(st.floats(5.0, 1e6), max_size=20))
def test_a_front_end_that_lives_may_die_for_ever(lives: list[float]) -> None:
    world = World()
    for life in lives:
        world.now += life
        (dying,) = world.front_ends.values()
        world.die(dying, "ended by SIGSEGV")
        world.reap(dying)
    assert not world.over
    assert world.life.state.status.frontend_restarts == len(lives)


@given(st.lists(st.one_of(st.none(), st.floats(0.0, 119.0)), min_size=4, max_size=4))
def test_an_engine_that_dies_young_again_and_again_ends_the_service_after_the_last_answers(
    lives: list[float | None],
) -> None:
    """None is a life that ends before the engine is ready; the first one is ready."""
    world, front_end, engine = ready_world()
    for life in [1.0, *lives]:
        assert world.ending is None
        (engine,) = world.engines.values()
        if life is not None and not engine.ready:
            world.ready(engine)
        world.now += life or 1.0
        world.die(engine, "ended by SIGKILL")
        world.reap(engine)
    assert not world.over
    assert not world.engines
    assert front_end.draining
    world.die(front_end, None)
    world.reap(front_end)
    assert world.life.state.exit_code == 1


def test_an_engine_that_was_never_ready_is_not_started_again() -> None:
    world = World()
    (engine,) = world.engines.values()
    world.die(engine, "ended by SIGKILL")
    world.reap(engine)
    assert world.life.state.exit_code == 1
    assert "before it was ever ready; giving up" in world.log[-1]


def test_devices_that_fail_while_they_load_are_given_up_one_way_after_the_other() -> None:
    world = World()
    for tries in range(4):
        (engine,) = world.engines.values()
        assert engine.seat is not None
        assert len(engine.seat.given_up) == tries
        world.said(engine, "distrusted", message="no memory")
        world.die(engine, "ended with exit code 71")
        world.reap(engine)
    assert world.life.state.exit_code == 1


def test_where_another_device_has_the_model_the_service_goes_on_without_one() -> None:
    world, front_end, first = ready_world(devices=2)
    (second,) = [one for one in world.engines.values() if one is not first]
    world.said(second, "failed", message="no such device")
    world.die(second, "ended with exit code 70")
    world.reap(second)
    assert world.life.state.status.state == "ready"
    assert list(world.engines.values()) == [first]
    # Nobody else has the model now: it is started again, and the state says so.
    world.die(first, "ended by SIGKILL")
    world.reap(first)
    assert front_end.status["state"] == "failed"
    assert [one.name for one in world.engines.values()] == [first.name]


# Parts that say nothing, or join nothing


def test_a_front_end_that_does_not_find_to_its_engine_is_replaced() -> None:
    world, front_end, engine = ready_world()
    world.now += 100.0
    front_end.links.clear()
    for _ in range(2):
        world.beat(front_end)
    front_end.links[engine.number] = True
    world.beat(front_end)  # late, but there
    front_end.links.clear()
    for _ in range(2):
        world.beat(front_end)
    assert not front_end.dead
    world.beat(front_end)
    assert front_end.dead


def test_a_front_end_that_was_only_just_told_of_an_engine_has_time_to_join_it() -> None:
    world, front_end, engine = ready_world()
    world.die(engine, "ended by SIGKILL")
    world.reap(engine)
    world.now += 100.0
    for _ in range(10):
        world.beat(front_end)  # there is no engine that it could join
    (again,) = world.engines.values()
    world.ready(again)
    for _ in range(10):
        world.beat(front_end)
    assert not front_end.dead


@given(st.sampled_from([1.0, 20.0]))
def test_what_is_silent_is_killed_and_replaced_but_an_engine_that_loads_has_time(loading: float) -> None:
    world = World()
    (front_end,), (engine,) = world.front_ends.values(), world.engines.values()
    wait(world, int(loading), engine)
    world.ready(engine)
    join(world, front_end)
    wait(world, int(SILENCE) + 1, engine)
    assert engine.dead
    assert "was silent for 31 s and was killed" in world.log[-1]
    world.reap(engine)
    (again,) = world.engines.values()
    wait(world, max(int(SILENCE), 5 * int(loading)), again)
    assert not again.dead
    wait(world, 1, again)
    assert again.dead
    wait(world, 31, front_end)
    assert front_end.dead
    world.reap(front_end)
    assert [one.name for one in world.front_ends.values()] == [front_end.name]


def test_a_thread_is_never_killed_and_one_that_hangs_ends_the_service() -> None:
    world, front_end, engine = ready_world(processes=False)
    wait(world, 100, front_end, engine)
    assert not front_end.dead
    assert not engine.dead
    world.said(engine, "hung", seconds=12.0)
    assert world.life.state.exit_code == 1


# Memory


def test_engines_that_take_too_much_end_the_first_start_and_no_later_one() -> None:
    world = World()
    (engine,) = world.engines.values()
    world.ready(engine, over_budget="too much")
    assert (world.life.state.exit_code, world.life.state.status.detail) == (1, "too much")
    world, _, engine = ready_world()
    world.die(engine, "ended by SIGKILL")
    world.reap(engine)
    (again,) = world.engines.values()
    world.ready(again, over_budget="too much")
    assert world.life.state.status.state == "ready"
    assert "too much" in world.log


# The end


@given(st.sampled_from(["loads", "serves"]), st.booleans(), st.integers(0, 3))
def test_a_drain_ends_front_ends_then_engines_then_the_service(
    engine_is: str, well: bool, delay: int
) -> None:
    world = World(front_ends=2, drain_delay_ms=delay * 1000.0)
    (engine,) = world.engines.values()
    if engine_is == "serves":
        world.ready(engine)
    world.tell("signalled", "SIGTERM")
    first, second = world.front_ends.values()
    assert first.draining
    assert second.draining
    world.die(first, None)
    world.reap(first)
    assert not engine.stopping
    assert not engine.dead
    world.die(second, None if well else "ended with exit code 1")
    world.reap(second)
    assert engine.stopping == (engine_is == "serves")
    assert engine.dead == (engine_is == "loads")  # nobody can wait for it
    assert not world.over
    world.die(engine, None)
    world.reap(engine)
    assert world.life.state.exit_code == (0 if well else 1)


def test_a_second_signal_ends_the_service_at_once() -> None:
    world, _, _ = ready_world()
    world.tell("signalled", "SIGTERM")
    world.tell("signalled", "SIGINT")
    assert world.life.state.exit_code == 1
    assert world.log[-1] == "SIGINT again: ending at once"


@settings(max_examples=20)
@given(st.integers(0, 10))
def test_a_drain_waits_for_what_does_not_end_as_long_as_it_was_told_to(delay: int) -> None:
    world, _, _ = ready_world(drain_delay_ms=delay * 1000.0)
    world.tell("signalled", "SIGTERM")
    limit = delay + 5.0 + LAST_GRACE
    wait(world, int(limit) - 1)
    assert not world.over
    wait(world, 1)
    assert world.life.state.exit_code == 1
    assert world.log[-1] == "not everything ended within drain_timeout_ms"


def test_an_engine_that_cannot_start_cuts_off_no_drain() -> None:
    world, front_end, engine = ready_world()
    world.die(engine, "ended by SIGKILL")
    world.reap(engine)
    (again,) = world.engines.values()
    world.tell("signalled", "SIGTERM")
    world.said(again, "failed", message="no memory")
    world.die(again, "ended with exit code 70")
    world.reap(again)
    assert not world.over, "who waits has not been told"
    world.die(front_end, None)
    world.reap(front_end)
    assert world.life.state.exit_code == 1
