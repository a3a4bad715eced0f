"""The crash-loop policy: a part that dies young again and again is not started again. Pure."""

from __future__ import annotations


class CrashLoopGuard:
    """Counts the short runs of one part in a row.

    A run of at least ``min_uptime`` seconds resets the count, since its end may have been an accident. After
    ``max_short_runs`` shorter runs in a row the part is given up.
    """

    def __init__(self, max_short_runs: int, min_uptime: float) -> None:
        self.max_short_runs = max_short_runs
        self.min_uptime = min_uptime
        self.short_runs = 0
        """The number of short runs in a row."""

    def record(self, uptime: float) -> bool:
        """Counts an ended run of ``uptime`` seconds. True if the part should not be started again."""
        self.short_runs = self.short_runs + 1 if uptime < self.min_uptime else 0
        return self.short_runs >= self.max_short_runs
