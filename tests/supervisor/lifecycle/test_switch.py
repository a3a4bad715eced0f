"""What has to come before what in a change of version, in any order of events."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from service.supervisor.lifecycle.switch import Stage, Switch, SwitchStep

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
        if action is SwitchStep.SHOW:
            assert (ready, joined, checked) == (engines, True, True)
        if before in (Stage.SWITCHED, Stage.FAILED):
            assert action is None
            assert switch.stage is before
        assert bool(switch.reason) == (switch.stage is Stage.FAILED)
    assert len(set(actions)) == len(actions), "something was done twice"
    order = [
        one
        for one in (SwitchStep.FREE, SwitchStep.START, SwitchStep.CHECK, SwitchStep.SHOW)
        if one in actions
    ]
    assert actions == order + [SwitchStep.ABANDON] * (SwitchStep.ABANDON in actions)


def test_a_good_load_goes_through_all_of_it() -> None:
    switch = Switch(2)
    assert switch.begin(True) is SwitchStep.FREE
    assert switch.room_made() is SwitchStep.START
    assert switch.ready() is None
    assert switch.ready() is SwitchStep.CHECK
    assert switch.checked("") is None
    assert switch.joined(False) is None
    assert switch.joined(True) is SwitchStep.SHOW
    assert switch.fail("too late") is None
    assert switch.stage is Stage.SWITCHED
