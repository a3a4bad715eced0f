"""What has to come before what, in any order of events."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.supervisor.pool import room
from service.supervisor.pool.room import Room, decide, needed
from service.supervisor.pool.switch import Action, Stage, Switch
from service.supervisor.pool.verdict import classes_problem, judge
from service.supervisor.pool.watch import Watch, look_at
from tests.api.site import CARD, CLASSES

MIB = 1 << 20
events = st.lists(
    st.one_of(
        st.sampled_from(["room_made", "ready"]).map(lambda name: (name, ())),
        st.booleans().map(lambda everyone: ("joined", (everyone,))),
        st.sampled_from(["", "", "", "NaN"]).map(lambda problem: ("checked", (problem,))),
        st.sampled_from(["died"]).map(lambda reason: ("fail", (reason,))),
    ),
    max_size=12,
)


@given(st.integers(1, 3), st.booleans(), events)
def test_nothing_answers_before_it_is_ready_joined_and_checked_whatever_happens(
    engines: int, make_room: bool, happens: list[tuple[str, tuple[Any, ...]]]
) -> None:
    switch = Switch(engines)
    actions = [switch.begin(make_room)]
    ready, joined, checked = 0, False, False
    for name, arguments in happens:
        before = switch.stage
        action = getattr(switch, name)(*arguments)
        if name == "ready" and before is Stage.LOADING:
            ready += 1
        if name == "joined":
            joined = arguments[0]
        if name == "checked" and before is Stage.CHECKING and not arguments[0]:
            checked = True
        if action is not None:
            actions.append(action)
        if action is Action.SHOW:
            assert (ready, joined, checked) == (engines, True, True)
        if before in (Stage.SWITCHED, Stage.FAILED):
            assert action is None
            assert switch.stage is before
        assert bool(switch.reason) == (switch.stage is Stage.FAILED)
    assert len(set(actions)) == len(actions), "something was done twice"
    order = [one for one in (Action.FREE, Action.START, Action.CHECK, Action.SHOW) if one in actions]
    assert actions == order + [Action.ABANDON] * (Action.ABANDON in actions)


def test_a_good_load_goes_through_all_of_it() -> None:
    switch = Switch(2)
    assert switch.begin(True) is Action.FREE
    assert switch.room_made() is Action.START
    assert switch.ready() is None
    assert switch.ready() is Action.CHECK
    assert switch.checked("") is None
    assert switch.joined(False) is None
    assert switch.joined(True) is Action.SHOW
    assert switch.fail("too late") is None
    assert switch.stage is Stage.SWITCHED


def test_the_verdict_refuses_what_is_no_number_and_what_agrees_too_little() -> None:
    old = np.eye(4, 10, dtype=np.float32)
    assert judge(old, old, 1.0).agreement == 1.0
    other = old.copy()
    other[0] = np.roll(other[0], 1)
    assert judge(old, other, 0.0).agreement == 0.75
    assert not judge(old, other, 0.75).problem
    assert "75%" in judge(old, other, 0.8).problem
    for bad in (np.nan, np.inf, -np.inf):
        broken = old.copy()
        broken[3, 5] = bad
        assert "1 of 4" in judge(old, broken, 0.0).problem
        assert not judge(broken, old, 1.0).problem  # the old one is what is to be got rid of
    assert judge(None, old, 1.0).agreement is None
    assert judge(old[:, :5], old, 1.0).agreement is None  # other classes, which was allowed


def test_the_verdict_knows_other_classes() -> None:
    assert not classes_problem(CARD, CARD)
    fewer = CARD.__class__(**{**vars(CARD), "classes": CLASSES[:7]})
    assert "7 classes" in classes_problem(CARD, fewer)
    swapped = CARD.__class__(**{**vars(CARD), "classes": CLASSES[::-1]})
    assert "other classes" in classes_problem(CARD, swapped)


amounts = st.one_of(st.none(), st.integers(0, 10**6 * MIB))


@given(st.integers(0, 10**6 * MIB), amounts, st.integers(0, 10**6 * MIB), amounts)
def test_a_load_is_refused_exactly_where_there_is_no_room_even_without_the_kept_one(
    need: int, free: int | None, kept: int, budget: int | None
) -> None:
    found = decide(need, Room(free, kept, budget))
    lefts = [left for left in (budget, None if free is None else free - room.RESERVE) if left is not None]
    assert bool(found.refusal) == any(need > left + kept for left in lefts)
    if found.refusal:
        assert "nothing was changed" in found.refusal
    else:
        assert found.make_room == any(need > left for left in lefts)


def test_a_larger_model_needs_more_and_a_smaller_one_is_not_trusted_to_need_less() -> None:
    assert needed(100, 10, 20) == 200
    assert needed(100, 20, 10) == 100
    assert needed(100, None, 10) == needed(100, 10, None) == 100
    assert room.parameters_of("vgg16") == 138_357_544
    assert room.parameters_of("mine") is None


def test_weights_that_are_being_written_are_not_loaded(tmp_path: Any) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"1")
    watch = Watch(look_at(str(folder)))
    assert not watch.changed(look_at(str(folder)))
    for size in range(2, 6):
        (folder / "model.bin").write_bytes(b"1" * size)
        assert not watch.changed(look_at(str(folder))), "it grows"
    assert watch.changed(look_at(str(folder)))
    assert not watch.changed(look_at(str(folder))), "once for each change"
    (folder / "model.bin").unlink()
    folder.rmdir()
    for _ in range(3):
        assert not watch.changed(look_at(str(folder))), "there is nothing to load"
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.bin").write_bytes(b"1" * 5)
    folder.symlink_to(other)  # how volumes change in one go
    assert not watch.changed(look_at(str(folder)))
    assert watch.changed(look_at(str(folder)))


@pytest.mark.parametrize("weights", ["pretrained", "random:3", "hf://owner/repo", "/nowhere/at/all"])
def test_weights_that_are_no_files_never_change(weights: str) -> None:
    watch = Watch(look_at(weights))
    assert not any(watch.changed(look_at(weights)) for _ in range(3))
