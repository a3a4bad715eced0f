"""How often the model was right. Nothing but counting."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

#: The classes that count for the second figure; a model with fewer is judged by what it has.
TOP = 5
#: Standard deviations of a 95 % interval.
_Z = 1.96


@dataclass
class Score:
    """Right answers so far. ``confusions`` counts (true class, class in its place) by class_id."""

    images: int = 0
    first: int = 0
    among_five: int = 0
    confusions: Counter[tuple[int, int]] = field(default_factory=Counter)

    def add(self, truth: int, ranked: Sequence[int]) -> None:
        """Counts one image of the class ``truth``, for which the model named ``ranked``, best first."""
        self.images += 1
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
