"""The judgement whether a new version may replace the old one, from both answers to known images: pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.observability.card import ModelCard

Answers = NDArray[np.float32]


@dataclass(frozen=True)
class Verdict:
    """The result of the check. ``problem`` is empty if the new version may answer."""

    problem: str = ""
    agreement: float | None = None
    """The share of images to which both give the same top class; None without a comparison."""

    def to_json(self) -> dict[str, float | None]:
        return {"agreement": self.agreement}


def classes_problem(old: ModelCard, new: ModelCard) -> str:
    """The error message for different classes; empty for the same classes in the same order."""
    if [one.label for one in old.classes] == [one.label for one in new.classes]:
        return ""
    if len(old.classes) != len(new.classes):
        what = f"{len(new.classes)} classes, and the model that answers has {len(old.classes)}"
    else:
        what = "other classes than the model that answers"
    return f'the new model has {what}; send "other_classes": true if that is meant'


def judge(old: Answers | None, new: Answers, least_agreement: float) -> Verdict:
    """Judges ``new`` against ``old`` (None: no comparison), both float32 ``[images, outputs]`` for the same images."""
    wrong = int(np.count_nonzero(~np.isfinite(new).all(axis=1)))
    if wrong:
        return Verdict(f"the new model answers {wrong} of {len(new)} known images with NaN or infinity")
    if old is None or old.shape != new.shape or not np.isfinite(old).all():
        return Verdict()
    agreement = float(np.mean(old.argmax(axis=1) == new.argmax(axis=1)))
    if agreement < least_agreement:
        return Verdict(
            f"the new model agrees with the old one on {agreement:.0%} of the known images, and least_agreement "
            f"is {least_agreement:.0%}",
            agreement,
        )
    return Verdict("", agreement)
