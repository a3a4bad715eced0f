"""Progress of a run: counted in steps, or by the clock on a machine whose speed is not known beforehand."""

from __future__ import annotations

import time


class Budget:
    """A budget of ``seconds`` of wall-clock time, of which earlier sittings spent ``spent``.

    The learning rate follows the time that is left (budgeted training, Li et al., arXiv:1905.04753). So a run on a
    shared machine ends on time and with a rate of zero, whatever number of steps it took.
    """

    def __init__(self, seconds: float) -> None:
        if seconds <= 0:
            raise ValueError("a budget is more than 0 seconds")
        self.seconds = seconds
        self._before = 0.0
        self._started = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds spent by this sitting and earlier ones."""
        return self._before + time.monotonic() - self._started

    @property
    def progress(self) -> float:
        """Share of the budget that is spent, 0..1."""
        return min(1.0, self.spent / self.seconds)

    def resume(self, spent: float) -> None:
        """Begins a new sitting; earlier ones spent ``spent`` seconds."""
        self._before = spent
        self._started = time.monotonic()
