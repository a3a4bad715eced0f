"""How often the model was right, and whether its probabilities say how often. Nothing but counting."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

#: The classes that count for the second figure; a model with fewer is judged by what it has.
TOP = 5
#: Standard deviations of a 95 % interval.
_Z = 1.96
#: Of the calibration error, as in Guo et al., arXiv:1706.04599, and in most papers since.
BINS = 15


class Reliability:
    """Probabilities of the first class beside the share of right answers, in `BINS` equal intervals of 0 to 1."""

    def __init__(self) -> None:
        self._images = [0] * BINS
        self._right = [0] * BINS
        self._probability = [0.0] * BINS

    def add(self, probability: float, right: bool) -> None:
        """Counts one image, whose first class had this probability, 0 to 1."""
        place = min(BINS - 1, int(probability * BINS))
        self._images[place] += 1
        self._right[place] += right
        self._probability[place] += probability

    @property
    def error(self) -> float:
        """The expected calibration error in percent: how far the two are apart in an interval, mean over images."""
        apart = (abs(right - sure) for right, sure in zip(self._right, self._probability, strict=True))
        return 100 * sum(apart) / max(1, sum(self._images))

    @property
    def confidence(self) -> float:
        """The mean probability in percent; where it is above top-1, the model is surer than it is right."""
        return 100 * sum(self._probability) / max(1, sum(self._images))


@dataclass
class Score:
    """Right answers so far. ``confusions`` counts (true class, class in its place) by class_id."""

    images: int = 0
    first: int = 0
    among_five: int = 0
    confusions: Counter[tuple[int, int]] = field(default_factory=Counter)
    reliability: Reliability = field(default_factory=Reliability)

    def add(self, truth: int, ranked: Sequence[int], probability: float) -> None:
        """Counts one image of the class ``truth``, for which the model named ``ranked``, best first.

        ``probability``, 0 to 1, is what it gave the first of them.
        """
        self.images += 1
        self.reliability.add(probability, ranked[0] == truth)
        self.among_five += truth in ranked[:TOP]
        if ranked[0] == truth:
            self.first += 1
        else:
            self.confusions[truth, ranked[0]] += 1

    @property
    def top1(self) -> float:
        """Percent."""
        return 100 * self.first / self.images if self.images else 0.0

    @property
    def top5(self) -> float:
        """Percent."""
        return 100 * self.among_five / self.images if self.images else 0.0

    def uncertainty(self, percent: float) -> float:
        """Half of the 95 % interval around ``percent``, in percentage points: Wilson's, which holds at 0 and 100."""
        count, share = self.images, percent / 100
        if not count:
            return 100.0
        spread = math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
        return 100 * _Z * spread / (1 + _Z**2 / count)
