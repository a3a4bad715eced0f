"""Shares of the connections: nobody waits for nothing, nobody gets far more than the others, the dead do not count."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.shared import connection_counts
from service.shared.connection_counts import ConnectionCounts, Share

HELD = st.lists(st.integers(0, 500), min_size=1, max_size=64)


def shares(held: list[int]) -> list[Share]:
    counts = ConnectionCounts(len(held))
    every = [counts.share(place) for place in range(len(held))]
    for share, number in zip(every, held, strict=True):
        share.note(number)
    return every


@given(HELD)
def test_whoever_has_least_may_always_take_another(held: list[int]) -> None:
    every = shares(held)
    assert every[held.index(min(held))].allows_another(min(held))


@given(st.integers(2, 16), st.integers(0, 400), st.integers(0, 2**32))
def test_clients_that_come_spread_whoever_wakes_first(front_ends: int, clients: int, seed: int) -> None:
    """The order in which front-ends wake favours the same ones, as a kernel's does."""
    held = [0] * front_ends
    every = shares(held)
    weights = [3.0**place for place in range(front_ends)]
    chance = random.Random(seed)
    for _ in range(clients):
        while True:
            (first,) = chance.choices(range(front_ends), weights)
            if every[first].allows_another(held[first]):
                break
            weights[first] /= 2  # it waits, so others come first
        held[first] += 1
        every[first].note(held[first])
        mean = sum(held) / front_ends
        assert max(held) <= 1.125 * mean + 2


def test_one_that_is_silent_or_leaves_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    full, silent, leaving = shares([50, 0, 0])
    assert not full.allows_another(50)
    now += connection_counts._FRESH
    leaving.note(0)
    assert not full.allows_another(50)
    leaving.leave()
    assert full.allows_another(50)  # it is alone
    silent.note(0)  # it was only slow
    assert not full.allows_another(50)


def test_a_single_front_end_takes_everything() -> None:
    share = Share.of_all()
    assert all(share.allows_another(held) for held in range(1000))
