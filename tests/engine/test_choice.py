"""Which of several engines gets the next image."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.choice import Offer, finish, in_order
from service.engine.estimate import QueueState, ServiceRates
from tests.engine.harness import Engine
from tests.engine.test_client_and_core import LATER, ask, picture
from tests.fakes import fingerprint
from tests.loops import on_a_loop

seconds = st.floats(0, 10)
offers = st.lists(
    st.builds(
        Offer,
        st.builds(
            ServiceRates,
            seconds,
            st.one_of(st.just(0.0), st.floats(0.1, 1e5)),
            st.integers(1, 64),
            st.just(0.0),
            st.just(0),
        ),
        st.builds(QueueState, st.integers(0, 500), st.integers(0, 64), seconds, st.just(0)),
        st.booleans(),
    ),
    max_size=6,
)


def offer(capacity: float, images: int, room: bool = True) -> Offer:
    return Offer(
        ServiceRates(1 / capacity, capacity, 1, 0.0, 0), QueueState(images, min(images, 1), 0.0, 0), room
    )


@given(offers, st.integers(0, 1000))
def test_whoever_has_room_is_in_order_and_the_first_is_through_first(found: list[Offer], turn: int) -> None:
    order = in_order(found, turn)
    assert sorted(order) == [place for place, one in enumerate(found) if one.room]
    times = [finish(found[place]) for place in order]
    assert times == sorted(times)


@given(offers, st.integers(0, 1000), st.integers(1, 100))
def test_who_has_more_before_it_never_comes_sooner(found: list[Offer], turn: int, more: int) -> None:
    for one in found:
        longer = one._replace(backlog=one.backlog._replace(images=one.backlog.images + more))
        assert finish(longer) >= finish(one)


@given(st.integers(0, 12), st.integers(0, 4), st.floats(0, 1), st.sampled_from([0.0, 10.0]))
def test_a_device_is_through_after_its_batch_the_queue_and_one_pass(
    queued: int, running: int, running_for: float, capacity: float
) -> None:
    pace = ServiceRates(0.4, capacity, 4, 0.0, 0)
    backlog = QueueState(queued, running, running_for, 0)
    of_the_batch = 0.4 - running_for if running and running_for < 0.4 else 0.0
    # An engine that has shown no capacity yet is not passed by for its queue.
    of_the_queue = (queued - running) / capacity if capacity and queued > running else 0.0
    assert finish(Offer(pace, backlog, True)) == pytest.approx(of_the_batch + of_the_queue + 0.4)


def test_equal_engines_take_turns() -> None:
    chosen = Counter(in_order([offer(10, 0)] * 3, turn)[0] for turn in range(30))
    assert chosen == {0: 10, 1: 10, 2: 10}


@given(st.lists(st.floats(1, 50), min_size=2, max_size=4))
def test_each_gets_as_much_as_it_is_fast(speeds: list[float]) -> None:
    """All images of a rush come at once: whoever is chosen each time, all are through at the same time."""
    given_to = [0] * len(speeds)
    for turn in range(400):
        (place, *_) = in_order([offer(*pair) for pair in zip(speeds, given_to, strict=True)], turn)
        given_to[place] += 1
    ends = [images / speed for images, speed in zip(given_to, speeds, strict=True)]
    assert max(ends) - min(ends) <= 2 / min(speeds)


@on_a_loop
async def test_two_engines_share_the_images_and_the_other_goes_on_when_one_dies() -> None:
    with Engine("thread", slots=8) as one, Engine("thread", slots=8) as other:
        client = one.connect()
        other.connect(client)
        for seed in range(8):
            assert ((await ask(client, picture(seed))).result == fingerprint(picture(seed), 10)).all()
        before = len(one.runner.batches)
        assert 0 < before < 8  # neither was passed by before it had shown its pace
        first, _ = client.connections
        first.fail()
        for seed in range(4):
            assert ((await ask(client, picture(seed))).result == fingerprint(picture(seed), 10)).all()
        assert len(one.runner.batches) == before
        assert client.connected


@on_a_loop
async def test_a_full_engine_is_passed_by_and_a_standby_waits_for_the_last_to_go() -> None:
    with Engine("thread", slots=2) as one, Engine("thread", slots=2) as other, Engine("thread") as spare:
        client = one.connect()
        other.connect(client)
        spare.connect(client)
        client.connections[2].standby = True
        slots = [client.acquire(client.clock() + LATER) for _ in range(4)]
        assert (one.arena.free, other.arena.free, spare.arena.free) == (0, 0, 16)
        for slot in slots:
            with slot:
                pass
        for connection in client.connections[:2]:
            connection.fail()
        with client.acquire() as slot:
            assert spare.arena.free == 15
            assert slot.number >= 0
