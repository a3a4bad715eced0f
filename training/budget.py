"""How far a run is: counted in steps, or by the clock where the machine's share is not known beforehand."""

from __future__ import annotations

import time


class Budget:
    """``seconds`` of wall-clock time, of which earlier sittings spent ``spent``.

    The learning rate falls with the time that is left (budgeted training, Li et al., arXiv:1905.04753), so a
    run on a machine that others use too ends on time and with a rate of zero, however many steps it took.
    """

    def __init__(self, seconds: float) -> None:
        if seconds <= 0:
            raise ValueError("a budget is more than 0 seconds")
        self.seconds = seconds
        self._before = 0.0
        self._started = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds of this sitting and of those before it."""
        return self._before + time.monotonic() - self._started

    @property
    def progress(self) -> float:
        """The share that is spent, 0..1."""
        return min(1.0, self.spent / self.seconds)

    def resume(self, spent: float) -> None:
        """Earlier sittings spent ``spent`` seconds; a new one begins now."""
        self._before = spent
        self._started = time.monotonic()
