"""The client of several engines on a virtual clock: whom it asks, for whom it waits, and what it refuses."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from service.engine.connection import Connection
from service.errors import DeadlineExceeded, EngineFailed, NotReady, Overloaded
from tests.engine.scripted import NUMBER, Desk, ScriptedEngine, desk

LATER = 60.0


@pytest.fixture(name="here")
def _here() -> Iterator[Desk]:
    with desk() as made:
        yield made


def fill(here: Desk) -> None:
    """Takes all slots, after which the next image is refused."""
    for _ in range(sum(one.arena.free for one in here.client.asked)):
        here.client.acquire()
    with pytest.raises(Overloaded):
        here.client.acquire()


@pytest.mark.parametrize("bulk", [False, True])
def test_a_slot_that_comes_free_is_taken_within_milliseconds(here: Desk, bulk: bool) -> None:
    engine = here.attach(slots=2)
    deadline = here.clock.now + LATER
    fill(here)
    waiting = here.begin(here.client.acquire_in_turn(deadline, bulk))
    here.wait(0.0051)
    assert not waiting.done()
    assert here.loop.timers == 1  # it rests between two looks
    for slot in (0, 1):
        engine.arena.release(slot)
    here.wait(0.0051)
    number = waiting.result().number
    assert engine.arena.deadline(number) == deadline
    assert engine.arena.is_bulk(number) is bulk


def test_whoever_waits_for_a_slot_waits_until_the_deadline(here: Desk) -> None:
    here.attach()
    fill(here)
    deadline = here.clock.now + 1.0
    waiting = here.begin(here.client.acquire_in_turn(deadline))
    here.wait(0.99)
    assert not waiting.done()
    here.wait(0.01)
    with pytest.raises(DeadlineExceeded, match="room for every image"):
        waiting.result()


def kinds(here: Desk, deadline: float, of: Connection) -> dict[str, object]:
    """Everybody who may wait for an engine."""
    return {
        "admitted": here.begin(here.client.admit(deadline)),
        "in turn": here.begin(here.client.acquire_in_turn(deadline)),
        "elsewhere": here.begin(here.client.acquire_elsewhere(of, deadline, bulk=False)),
    }


def test_all_wait_for_an_engine_until_the_deadline_and_no_longer(here: Desk) -> None:
    first = here.attach()
    (connection,) = here.client.connections
    here.kill(first)
    assert not here.client.connected
    assert here.client.connections == []
    waiting = kinds(here, here.clock.now + 1.0, connection)
    here.wait(0.99)
    assert not any(task.done() for task in waiting.values())  # type: ignore[attr-defined]
    here.wait(0.01)
    for task in waiting.values():
        with pytest.raises(DeadlineExceeded, match="another engine"):
            task.result()  # type: ignore[attr-defined]
    with pytest.raises(EngineFailed, match="started again"):
        here.client.acquire()


def test_the_next_engine_is_taken_at_once_and_is_waited_for_again_after_a_false_end(here: Desk) -> None:
    first = here.attach()
    (connection,) = here.client.connections
    here.kill(first)
    waiting = kinds(here, here.clock.now + LATER, connection)
    second = here.attach(slots=3)
    here.loop.turn()
    assert sorted(second.arena.owners) == [NUMBER] * 3
    assert not any(second.arena.is_bulk(slot) for slot in range(3))
    assert here.loop.timers == 0
    assert all(task.done() for task in waiting.values())  # type: ignore[attr-defined]
    here.client.expect_no_other()
    third = here.attach(slots=3)  # it came nevertheless
    for engine in (second, third):
        here.kill(engine)
    more = kinds(here, here.clock.now + LATER, connection)
    assert not any(task.done() for task in more.values())  # type: ignore[attr-defined]
    here.client.expect_no_other()
    here.loop.turn()
    for task in more.values():
        with pytest.raises(EngineFailed, match="failed while it held"):
            task.result()  # type: ignore[attr-defined]


def test_who_moves_waits_for_a_slot_of_the_same_model_alone(here: Desk) -> None:
    old, other = here.attach(model="a"), here.attach(model="a")
    failed = here.client.connections[0]
    here.kill(old)
    fill(here)
    another = here.attach(slots=5, model="b")
    deadline = here.clock.now + LATER
    waiting = here.begin(here.client.acquire_elsewhere(failed, deadline, bulk=True))
    here.wait(0.0051)
    assert not waiting.done()
    for slot in (0, 1):
        other.arena.release(slot)
    here.wait(0.0051)
    connection, number = waiting.result()
    assert connection is here.client.connections[0]
    assert other.arena.deadline(number) == deadline
    assert other.arena.is_bulk(number)
    assert another.arena.free == 5
    here.kill(other)
    with pytest.raises(EngineFailed, match="another model"):
        here.begin(here.client.acquire_elsewhere(failed, deadline, bulk=False)).result()


def test_whoever_looks_often_leaves_nothing_behind(here: Desk) -> None:
    old = here.attach()
    failed = here.client.connections[0]
    here.kill(old)
    here.attach()
    fill(here)
    waiting = here.begin(here.client.acquire_elsewhere(failed, here.clock.now + LATER, bulk=False))
    for _ in range(20):
        here.wait(0.0051)
    assert not waiting.done()
    gc.collect()
    assert len(here.loop.futures) == 1
    waiting.cancel()


def test_who_moves_goes_to_the_standby_of_its_model_past_an_engine_of_another(here: Desk) -> None:
    old, spare, another = here.attach(model="a"), here.attach(standby=True, model="a"), here.attach(model="b")
    failed = here.client.connections[0]
    here.kill(old)
    moved = here.begin(here.client.acquire_elsewhere(failed, here.clock.now + LATER, bulk=False))
    connection, _ = moved.result()
    assert connection.standby
    assert (spare.arena.free, another.arena.free) == (1, 2)


def test_a_standby_is_asked_while_nobody_else_is_there(here: Desk) -> None:
    spare, first = here.attach(standby=True), here.attach()
    assert [one.standby for one in here.client.connections] == [True, False]
    assert [one.standby for one in here.client.asked] == [False]
    fill(here)
    assert (spare.arena.free, first.arena.free) == (2, 0)
    here.kill(first)
    assert [one.standby for one in here.client.asked] == [True]
    assert here.client.acquire().number == 0
    assert spare.arena.free == 1


def test_what_is_full_says_of_how_many_places_and_for_how_long() -> None:
    for capacities, wait in (((4.0, 8.0), 3.0), ((0.0, 0.0), 1.0)):
        with desk() as here:
            for slots, capacity in zip((12, 24), capacities, strict=True):
                here.attach(slots).measured(0.0, capacity)
            fill(here)
            with pytest.raises(Overloaded, match="all 36 places are taken") as refused:
                here.client.check_capacity()
            assert wait <= refused.value.retry_after <= 1.25 * wait


def test_equal_engines_that_are_idle_take_turns(here: Desk) -> None:
    engines = [here.attach(4) for _ in range(3)]
    for _ in range(12):
        with here.client.acquire() as slot:
            (taker,) = [number for number, engine in enumerate(engines) if engine.arena.free < 4]
            engines[taker].arena.arrivals[0] += 1
            assert slot.number == 0
    assert [engine.arena.arrivals[0] for engine in engines] == [4, 4, 4]


def test_images_are_counted_once_in_the_engine_that_would_get_them(here: Desk) -> None:
    slow, fast = here.attach(8), here.attach(8)
    slow.measured(1.0, 1.0)
    fast.measured(0.01, 100.0)
    for _ in range(4):
        fast.arena.acquire(NUMBER)  # which leaves no room there for bulk, but that is not counted
    here.client.record_arrivals()
    here.client.record_arrivals(4)
    assert (slow.arena.arrivals.sum(), fast.arena.arrivals.sum()) == (0, 5)
    assert fast.arena.arrivals[NUMBER] == 5


def test_bulk_is_behind_everybody_and_others_behind_those_who_are_due_before_them(here: Desk) -> None:
    engine = here.attach(slots=64)
    now = here.clock.now
    for _ in range(20):
        here.client.acquire(now + LATER)
    engine.measured(0.5, 2.0)  # the 20 take ten seconds, and the image itself half of one
    for ahead, deadline, bulk in ((20, now + 10.4, True), (0, now + 10.4, False), (20, now + LATER, False)):
        wait = 0.5 * (ahead + 1) if ahead else 0.0
        refused = wait > deadline - now
        if refused:
            with pytest.raises(Overloaded, match="would take") as error:
                here.client.check_capacity(deadline, bulk)
            missing = max(1.0, wait - (deadline - now))
            assert missing <= error.value.retry_after <= 1.25 * missing
        else:
            here.client.check_capacity(deadline, bulk)
    here.client.check_capacity(now + 10.5, bulk=True)  # exactly in time


def test_an_image_is_refused_only_if_the_best_engine_would_be_late(here: Desk) -> None:
    slow, fast = here.attach(4), here.attach(4)
    slow.measured(2.0, 0.5)
    fast.measured(0.25, 4.0)
    deadline = here.clock.now + 1.0
    for engine in (slow, fast):
        engine.arena.record_admission(engine.arena.acquire(NUMBER) or 0, here.clock.now + 0.5, bulk=False)
    here.client.check_capacity(deadline)
    assert here.client.acquire(deadline).number == 1
    assert (slow.arena.free, fast.arena.free) == (3, 2)
    fast.measured(2.0, 0.5)
    for ask in (here.client.check_capacity, here.client.acquire):
        with pytest.raises(Overloaded):
            ask(deadline)


def test_pending_are_the_images_that_engines_hold(here: Desk) -> None:
    engines = [here.attach(4), here.attach(4)]
    tasks = []
    for number in range(5):
        slot = here.client.acquire(here.clock.now + LATER)
        tasks.append(here.begin(slot.answer(here.clock.now + LATER, 10)))
        assert here.client.pending == number + 1
    for engine in engines:
        for slot_number in engine.received():
            engine.answer(slot_number)
    here.loop.turn()
    assert here.client.pending == 0
    assert all(task.done() for task in tasks)


def test_without_engines_there_is_nothing_to_ask_and_after_the_end_nothing_to_wait_for(here: Desk) -> None:
    for ask in (here.client.acquire, here.client.check_capacity, here.client.record_arrivals):
        with pytest.raises(NotReady):
            ask()
    assert "not connected" in repr(here.client)
    here.attach()
    assert "not connected" not in repr(here.client)
    waiting_at: ScriptedEngine = here.engines[0]
    here.client.detach()
    assert here.client.connections == []
    assert not here.client.connected
    assert waiting_at.link.receive() is None
