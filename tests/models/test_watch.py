"""When the canary is due, and what follows from its answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.models.guard import LOOK_EVERY
from service.models.watch import CANARY_EVERY, Trust, Watch
from service.shared.batches import DeviceFailed

EVERY = 8


@given(places=st.integers(1, 4), passes=st.lists(st.integers(0, 3), max_size=300))
def test_no_place_has_more_passes_than_that_without_the_canary(places: int, passes: list[int]) -> None:
    watch, since = Watch(range(places), EVERY), dict.fromkeys(range(places), 0)
    for place in passes:
        watch.ran(place)
        if place in since:
            since[place] += 1
        assert watch.due == (max(since.values()) >= EVERY)
        while watch.due:
            place = watch.next()
            assert watch.is_due(place)
            watch.checked(place)
            since[place] = 0
    assert max(since.values()) < EVERY


def test_with_time_to_spare_every_place_has_its_turn() -> None:
    watch = Watch("abc")
    seen = []
    for _ in range(6):
        seen.append(watch.next())
        watch.checked(seen[-1])
    assert seen == list("abcabc")


def test_two_images_look_within_the_promised_passes_and_cost_three_in_a_hundred() -> None:
    assert 2 * LOOK_EVERY <= CANARY_EVERY
    assert 1 / CANARY_EVERY <= 0.02
    assert 1 / (LOOK_EVERY + 1) < 0.031


def test_an_answer_that_stays_wrong_ends_the_device_and_one_that_comes_right_does_not() -> None:
    trust = Trust()
    with pytest.raises(DeviceFailed, match="twice") as caught:
        trust.judge(1, 2, lambda: 2)
    assert caught.value.mismatches == 3
    ran = trust.judge(1, 1, lambda: 0)
    assert (ran.mismatches, ran.distrust) == (1, "")


@given(st.lists(st.integers(0, 1500), max_size=6))
def test_a_device_that_is_wrong_now_and_then_is_found_out(pauses: list[int]) -> None:
    trust, right = Trust(), 10**6
    for pause in pauses:
        for _ in range(pause):
            assert trust.judge(0, 1, lambda: 1).distrust == ""
        right += pause
        ran = trust.judge(1, 1, lambda: 0)
        assert bool(ran.distrust) == (right < 1000)
        right = 0
