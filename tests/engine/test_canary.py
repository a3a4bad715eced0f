"""The canary in the engine's loop: a device that begins to be wrong is found, and one that is right is left alone."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.canary import PAUSE, Canary
from service.errors import EngineFailed
from service.models.watch import CANARY_EVERY
from service.shared.batches import BatchReport, DeviceFailed
from tests.engine.driven import Driven
from tests.engine.harness import Engine
from tests.engine.test_client_and_core import ask, picture
from tests.engine.virtual import MOST
from tests.loops import on_a_loop


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, MOST), min_size=1, max_size=4), before=st.integers(0, 2 * CANARY_EVERY))
def test_a_device_that_begins_to_be_wrong_is_found_within_so_many_passes(
    sizes: list[int], before: int
) -> None:
    driven = Driven()
    try:
        for number in range(before):
            driven.serve(sizes[number % len(sizes)])
        assert driven.canaries <= driven.passes // CANARY_EVERY
        driven.runner.wrong = float("inf")

        def go_on() -> None:
            for number in range(CANARY_EVERY + 1):
                driven.serve(sizes[number % len(sizes)])

        with pytest.raises(DeviceFailed, match="canary"):
            go_on()
        assert driven.runner.wrongs <= CANARY_EVERY
    finally:
        driven.close()


def test_one_wrong_pass_harms_no_engine_and_the_canary_takes_one_pass_in_so_many() -> None:
    driven = Driven()
    try:
        for number in range(4 * CANARY_EVERY + 1):
            if number == CANARY_EVERY:
                driven.runner.wrong = 1  # the canary meets it
            driven.serve(1)
        assert driven.runner.wrongs == 0
        assert driven.canaries == 4
    finally:
        driven.close()


def test_an_idle_device_is_looked_at_and_nobody_waits_for_long() -> None:
    driven = Driven()
    try:
        driven.clock.advance(PAUSE)
        driven.core.step(0)
        given_ = driven.device.given
        assert given_ is not None
        assert given_.is_canary
        driven.runner.wrong = float("inf")
        driven.device.finish(during=0.1)
        with pytest.raises(DeviceFailed, match="twice"):
            driven.core.step(0)
    finally:
        driven.close()


def test_the_canary_of_an_idle_device_makes_way_for_whoever_comes_and_one_that_is_due_does_not() -> None:
    driven = Driven()
    try:
        driven.clock.advance(PAUSE)
        driven.core.step(0)
        assert driven.device.given is not None
        driven.runner.wrong = 1  # it would be seen
        driven.serve(1)
        assert (driven.runner.wrongs, driven.canaries) == (1, 1)
        for _ in range(CANARY_EVERY):
            assert not driven.runner.hurried
            driven.serve(1)
        assert driven.canaries == 2
        assert not driven.runner.hurried
    finally:
        driven.close()


@pytest.mark.parametrize("streams", [0, 2])
@on_a_loop
async def test_a_wrong_device_is_found_while_it_is_busy(streams: int) -> None:
    with Engine("thread", slots=16, max_batch_size=4, stream_count=streams) as engine:
        client = engine.connect()
        client.expect_no_other()
        await asyncio.gather(*(ask(client, picture(seed)) for seed in range(8)))
        engine.runner.wrong = float("inf")

        async def one(seed: int) -> None:
            while True:
                await ask(client, picture(seed))

        found = await asyncio.gather(*(one(seed) for seed in range(4)), return_exceptions=True)
        assert all(isinstance(error, EngineFailed) for error in found)
        assert 0 < engine.runner.wrongs <= CANARY_EVERY + streams


@given(
    st.lists(
        st.tuples(st.booleans(), st.booleans(), st.booleans(), st.floats(0.0, 3.0)), min_size=1, max_size=60
    )
)
def test_the_canary_is_never_asked_for_twice_at_once_and_rests_in_proportion(
    events: list[tuple[bool, bool, bool, float]],
) -> None:
    canary, now, out = Canary(0.0), 0.0, False
    for due, in_stream, failed, seconds in events:
        now += seconds
        if out:
            canary.ended(
                None if failed else BatchReport(1, canary_due=due), in_stream=True, seconds=seconds, now=now
            )
            out = False
            assert not canary.is_welcome(now + 31 * seconds - 1e-6)
            assert canary.is_welcome(now + max(PAUSE, 32 * seconds) + 1e-6)
        else:
            canary.ran(None if failed else BatchReport(1, canary_due=due), in_stream, now)
            assert canary.is_due(in_stream) == (due and not failed)
        if canary.is_due(True):
            canary.started(True)
            out = True
            assert not canary.is_due(True)
