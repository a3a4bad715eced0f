"""The crash-loop policy: when a part that died is not started again. Pure: it knows no clock."""

from __future__ import annotations


class CrashLoopGuard:
    """Counts short runs of one part, in a row.

    A run of ``min_uptime`` seconds or more shows that the part can work: whatever ended it may not come again.
    ``max_short_runs`` shorter ones in a row show that the next will be no better.
    """

    def __init__(self, max_short_runs: int, min_uptime: float) -> None:
        self.max_short_runs = max_short_runs
        self.min_uptime = min_uptime
        self.short_runs = 0
        """Short runs in a row."""

    def record(self, uptime: float) -> bool:
        """Counts a run of ``uptime`` seconds that has ended. Returns whether to give up."""
        self.short_runs = self.short_runs + 1 if uptime < self.min_uptime else 0
        return self.short_runs >= self.max_short_runs
