"""Whether a new version may answer, by what it says to known images."""

from __future__ import annotations

import numpy as np

from service.supervisor.pool.verdict import classes_problem, judge
from tests.api.site import CARD, CLASSES


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
