"""Whether there is memory for another model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.supervisor.pool import room
from service.supervisor.pool.room import Room, decide, needed

MIB = 1 << 20
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
