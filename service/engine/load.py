"""How busy the engine is: pure arithmetic over counts and times, for metrics, Retry-After and autoscaling."""

from __future__ import annotations

import math

#: Seconds over which rates are smoothed: an autoscaler's scrape interval, so that no burst falls between two.
_WINDOW = 10.0
#: The weight of the newest batch in the measured capacity.
_NEWEST = 0.1


class LoadMeter:
    """Smoothed arrivals and busy time. Times are seconds of one monotonic clock.

    ``capacity`` is in images a second of a device that never rests. Warm-up seeds it, so that it is
    never learnt from users; after that, full batches only: a small one says what little was asked
    for, not what is possible. A smaller batch counts when it shows that more is possible.
    """

    def __init__(self, now: float, capacity: float, max_batch_size: int) -> None:
        self.capacity = capacity
        self.arrival_rate = 0.0
        self.busy_ratio = 0.0
        self._max_batch_size = max_batch_size
        self._at = now
        self._arrivals = 0
        self._busy = 0.0

    @property
    def saturation(self) -> float:
        """Arrivals over capacity: 1 is as much as can be served."""
        return self.arrival_rate / self.capacity if self.capacity else 0.0

    def ran(self, images: int, seconds: float) -> None:
        """Takes note of one forward pass that had the whole device."""
        self._busy += seconds
        if seconds <= 0:
            return
        rate = images / seconds
        if images >= self._max_batch_size or rate > self.capacity:
            self._learn(rate)

    def ran_in_lane(self, seconds: float, lanes: int, full: bool) -> None:
        """Takes note of one image in one of ``lanes``. ``full``: all of them were at work, so that it shows
        what is possible; a lane alone is faster."""
        self._busy += seconds / lanes
        if full and seconds > 0:
            self._learn(lanes / seconds)

    def _learn(self, rate: float) -> None:
        self.capacity += _NEWEST * (rate - self.capacity)

    def update(self, now: float, arrivals: int) -> None:
        """Brings the rates up to ``now``; ``arrivals`` counts images offered since the beginning."""
        elapsed = now - self._at
        if elapsed <= 0:
            return
        weight = 1 - math.exp(-elapsed / _WINDOW)
        self.arrival_rate += weight * ((arrivals - self._arrivals) / elapsed - self.arrival_rate)
        self.busy_ratio += weight * (min(1.0, self._busy / elapsed) - self.busy_ratio)
        self._at, self._arrivals, self._busy = now, arrivals, 0.0
