"""The comparison of the shadow with the model that answers, summed over all front-ends: pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Judgement = Literal["collecting", "agrees", "mostly agrees", "differs"]

#: The number of images below which there is no verdict.
_ENOUGH = 100
#: The least shares of images with the same top class for the verdicts "agrees" and "mostly agrees".
_AGREES, _MOSTLY = 0.99, 0.95


@dataclass
class ShadowTally:
    """Sums over compared images."""

    compared: int = 0
    agreed: int = 0
    """Images with the same top class."""
    difference: float = 0.0
    """The sum of each image's largest difference of any class's probability."""
    seconds: float = 0.0
    """The seconds of the shadow's batches."""
    usual_seconds: float = 0.0
    """The seconds of the answering model's batches."""
    missed: int = 0
    """Images for which the shadow had no free slot, or gave no answer."""

    def add(self, compared: int, agreed: int, *rest: float) -> None:
        """Adds a front-end's sums since its last report: the values of `take`."""
        difference, seconds, usual_seconds, missed = rest
        self.compared += compared
        self.agreed += agreed
        self.difference += difference
        self.seconds += seconds
        self.usual_seconds += usual_seconds
        self.missed += int(missed)

    def take(self) -> Sequence[float]:
        """Returns the sums for `add`, and resets them."""
        values = self.compared, self.agreed, self.difference, self.seconds, self.usual_seconds, self.missed
        self.compared = self.agreed = self.missed = 0
        self.difference = self.seconds = self.usual_seconds = 0.0
        return values

    @property
    def verdict(self) -> Judgement:
        if self.compared < _ENOUGH:
            return "collecting"
        agreement = self.agreed / self.compared
        return "agrees" if agreement >= _AGREES else "mostly agrees" if agreement >= _MOSTLY else "differs"

    def to_json(self) -> dict[str, Any]:
        """The verdict and the means, for ``/healthz`` and ``/model``."""
        some = max(1, self.compared)
        return {
            "verdict": self.verdict,
            "compared": self.compared,
            "missed": self.missed,
            "agreement": self.agreed / some if self.compared else None,
            "mean_difference": self.difference / some if self.compared else None,
            "times_slower": self.seconds / self.usual_seconds if self.usual_seconds else None,
        }
