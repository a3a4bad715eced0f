"""How a version ends that another has replaced."""

from __future__ import annotations

from typing import Any

from service.supervisor.lifecycle.leaving import GRACE
from tests.supervisor.lifecycle.world import SETTINGS, Engine, FrontEnd, World

ORDER: dict[str, Any] = {"name": None, "settings": {}, "other_classes": False, "least_agreement": 0.0}


def order(world: World, action: str) -> None:
    """A client of the first front-end wants something."""
    (front_end, *_) = world.front_ends.values()
    front_end.orders.add(1)
    world.said(front_end, "order", number=1, action=action, **ORDER)


def join(world: World) -> None:
    for front_end in world.front_ends.values():
        front_end.links = dict.fromkeys(front_end.links, True)
        world.beat(front_end)


def switched(**options: Any) -> tuple[World, list[FrontEnd], Engine, Engine]:
    """Two front-ends, the engine that has answered, and the one that does."""
    world = World(front_ends=2, **options)
    (old,) = world.engines.values()
    world.ready(old)
    join(world)
    order(world, "load")
    load = world.load
    assert load is not None
    assert old.seat is not None
    world.tell("load_possible", load, load.servable.current.settings, [old.seat.device], False)
    (new,) = [engine for engine in world.engines.values() if engine is not old]
    world.ready(new)
    join(world)
    world.passed.add(new.version)
    world.tell("checked", new.version, "", {})
    assert world.board == {0: new.version}
    return world, list(world.front_ends.values()), old, new


def kill(world: World, process: Engine | FrontEnd) -> None:
    world.die(process, "ended by SIGKILL")
    world.reap(process)


def test_a_version_is_kept_for_a_rollback_and_then_let_go() -> None:
    world, front_ends, old, _ = switched()
    assert not any(front_end.leaving for front_end in front_ends)
    world.now += SETTINGS.keep_previous_ms / 1000
    for front_end in front_ends:
        world.beat(front_end)
    world.tell("tick")
    assert all(front_end.leaving == {old.version} for front_end in front_ends)
    assert not old.stopping
    for front_end in front_ends:
        front_end.leaving.clear()
        world.said(front_end, "left", model=0, version=old.version)
    assert old.stopping
    world.die(old, None)
    world.reap(old)
    assert [one["role"] for one in front_ends[0].status["engines"]] == ["current"]


def test_a_version_that_need_not_be_kept_leaves_at_once() -> None:
    _, front_ends, old, _ = switched(keep_previous_ms=0.0)
    assert all(front_end.leaving == {old.version} for front_end in front_ends)


def test_nothing_goes_back_to_an_engine_that_is_about_to_end_or_has() -> None:
    world, front_ends, old, new = switched()
    world.said(old, "distrusted", message="wrong numbers")
    order(world, "rollback")
    assert world.board == {0: new.version}
    assert not front_ends[0].orders
    kill(world, old)
    assert all(front_end.leaving == {old.version} for front_end in front_ends)
    order(world, "rollback")
    assert world.board == {0: new.version}


def test_an_engine_comes_back_for_those_who_wait_for_its_version_and_for_nobody_else() -> None:
    world, (waits, left), old, _ = switched(keep_previous_ms=0.0)
    left.leaving.clear()
    world.said(left, "left", model=0, version=old.version)
    kill(world, old)
    (again,) = [engine for engine in world.engines.values() if engine.version == old.version]
    world.ready(again)
    assert again.number in waits.links
    assert again.number not in left.links
    waits.leaving.clear()
    world.said(waits, "left", model=0, version=old.version)
    assert again.stopping


def test_a_front_end_that_has_died_is_not_waited_for() -> None:
    world, (first, second), old, _ = switched(keep_previous_ms=0.0)
    second.leaving.clear()
    world.said(second, "left", model=0, version=old.version)
    assert not old.stopping
    kill(world, first)
    assert old.stopping


def test_a_version_that_is_not_left_in_time_is_killed() -> None:
    world, front_ends, old, new = switched(keep_previous_ms=0.0)
    world.now += SETTINGS.request_timeout_ms / 1000 + GRACE - 0.1
    for process in [*front_ends, old, new]:
        world.beat(process)
    world.tell("tick")
    assert not old.dead
    world.now += 0.1
    world.tell("tick")
    assert old.dead
