"""What the shadow has been seen to do, summed over all front-ends, and the verdict on it: pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Judgement = Literal["collecting", "agrees", "mostly agrees", "differs"]

#: Images without which nothing is said.
_ENOUGH = 100
#: Shares of images with the same top class, from which on the shadow agrees, or mostly does.
_AGREES, _MOSTLY = 0.99, 0.95


@dataclass
class Tally:
    """Sums, as front-ends report them: images compared, those with the same top class, the largest difference of any
    class's probability, and the seconds that either engine took for its batches."""

    compared: int = 0
    agreed: int = 0
    difference: float = 0.0
    seconds: float = 0.0
    usual_seconds: float = 0.0
    missed: int = 0
    """Images that the shadow had no room for, or gave no answer to."""

    def add(self, compared: int, agreed: int, *rest: float) -> None:
        """What a front-end has seen since its last report."""
        difference, seconds, usual_seconds, missed = rest
        self.compared += compared
        self.agreed += agreed
        self.difference += difference
        self.seconds += seconds
        self.usual_seconds += usual_seconds
        self.missed += int(missed)

    def take(self) -> Sequence[float]:
        """What `add` takes, and begins anew."""
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
        """For people."""
        some = max(1, self.compared)
        return {
            "verdict": self.verdict,
            "compared": self.compared,
            "missed": self.missed,
            "agreement": self.agreed / some if self.compared else None,
            "mean_difference": self.difference / some if self.compared else None,
            "times_slower": self.seconds / self.usual_seconds if self.usual_seconds else None,
        }
