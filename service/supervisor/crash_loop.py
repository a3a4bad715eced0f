"""Whether what died is worth another start: a rule without a clock."""

from __future__ import annotations


class Lives:
    """How often a part has died young, one time after the other.

    A life of ``long`` seconds and more shows that it can live: whatever ended it may not come again. ``most``
    shorter ones in a row show that the next will be no better.
    """

    def __init__(self, most: int, long: float) -> None:
        self.most = most
        self.long = long
        self.short = 0
        """Short lives in a row."""

    def ended(self, seconds: float) -> bool:
        """Takes note of a life. True when it is not to be followed by another."""
        self.short = self.short + 1 if seconds < self.long else 0
        return self.short >= self.most
