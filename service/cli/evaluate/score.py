"""The figures of an evaluation: top-1, top-5, confusions and the calibration error. Pure counting."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

#: The number of best classes among which the second figure, top-5, looks for the true one.
TOP = 5
#: Standard deviations of a 95 % interval.
_Z = 1.96
#: Intervals of the calibration error, as in Guo et al., arXiv:1706.04599.
BINS = 15


class Reliability:
    """Counts the probabilities of the top class and the right answers, in `BINS` equal intervals of 0 to 1."""

    def __init__(self) -> None:
        self._images = [0] * BINS
        self._right = [0] * BINS
        self._probability = [0.0] * BINS

    def add(self, probability: float, right: bool) -> None:
        """Counts an image whose top class had this probability, 0 to 1."""
        place = min(BINS - 1, int(probability * BINS))
        self._images[place] += 1
        self._right[place] += right
        self._probability[place] += probability

    @property
    def error(self) -> float:
        """The expected calibration error in percent: |accuracy - mean probability| in an interval, mean over images."""
        apart = (abs(right - sure) for right, sure in zip(self._right, self._probability, strict=True))
        return 100 * sum(apart) / max(1, sum(self._images))

    @property
    def confidence(self) -> float:
        """The mean probability in percent; above top-1, the model is over-confident."""
        return 100 * sum(self._probability) / max(1, sum(self._images))


@dataclass
class Score:
    """The counts so far. ``confusions`` counts wrong answers by (true class_id, predicted class_id)."""

    images: int = 0
    first: int = 0
    among_five: int = 0
    confusions: Counter[tuple[int, int]] = field(default_factory=Counter)
    reliability: Reliability = field(default_factory=Reliability)

    def add(self, truth: int, ranked: Sequence[int], probability: float) -> None:
        """Counts an image of the class ``truth``. ``ranked`` are the predicted classes, best first.

        ``probability`` is that of the best class, 0 to 1.
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
        """The top-1 accuracy in percent."""
        return 100 * self.first / self.images if self.images else 0.0

    @property
    def top5(self) -> float:
        """The top-5 accuracy in percent."""
        return 100 * self.among_five / self.images if self.images else 0.0

    def uncertainty(self, percent: float) -> float:
        """Half the width of Wilson's 95 % interval for ``percent``, in percentage points. It holds at 0 and 100 too."""
        count, share = self.images, percent / 100
        if not count:
            return 100.0
        spread = math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
        return 100 * _Z * spread / (1 + _Z**2 / count)
