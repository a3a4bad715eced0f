"""The counting."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cli.evaluate.score import Score


def test_right_first_among_five_and_not() -> None:
    score = Score()
    for truth, ranked in (
        (1, [1, 2]),
        (2, [1, 2, 3, 4, 5]),
        (6, [1, 2, 3, 4, 5]),
        (6, [1, 2, 3, 4, 5, 6]),
        (6, [6]),
    ):
        score.add(truth, ranked, 0.5)
    assert (score.top1, score.top5) == (40.0, 60.0)
    assert (score.reliability.error, score.reliability.confidence) == (10.0, 50.0)
    assert score.confusions == {(2, 1): 1, (6, 1): 2}


def test_nothing_is_no_division() -> None:
    assert (Score().top1, Score().top5, Score().uncertainty(0.0)) == (0.0, 0.0, 100.0)


@given(st.integers(1, 100_000), st.floats(0, 1))
def test_the_interval_is_wilsons(images: int, share: float) -> None:
    score = Score(images=images)
    assert 0 < score.uncertainty(100 * share) <= 50


def test_the_interval_of_half_of_a_hundred() -> None:
    # Wilson 1927: 50 of 100 is 40.4 to 59.6 %.
    assert Score(images=100).uncertainty(50.0) == pytest.approx(9.6, abs=0.05)
