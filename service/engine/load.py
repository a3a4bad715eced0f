"""The engine's load: pure arithmetic over counts and times, for metrics, Retry-After and autoscaling."""

from __future__ import annotations

import math

#: The time constant of smoothed rates in seconds: an autoscaler's scrape interval, so that no burst goes unseen.
_WINDOW = 10.0
#: The weight of the newest batch in the measured capacity.
_NEWEST = 0.1


class LoadMeter:
    """Smoothed arrivals, busy time and costs. Times are seconds of one monotonic clock.

    ``capacity`` is in images a second of a device that is never idle. Warm-up gives its first value, so that it is
    never learnt from users. Afterwards full batches update it. A smaller batch shows the demand rather than the
    capacity, so it counts only if it is faster than the capacity so far.

    ``decode_capacity`` is in images a second of decoders that are never idle, from the time that they take for an image
    now, beside all else that runs on this machine. It is 0 before the first image.
    """

    def __init__(self, now: float, capacity: float, max_batch_size: int) -> None:
        self.capacity = capacity
        self.seconds = 0.0
        """The smoothed seconds of a forward pass of any size; 0 before the first."""
        self.decode_capacity = 0.0
        self.arrival_rate = 0.0
        self.busy_ratio = 0.0
        self._max_batch_size = max_batch_size
        self._at = now
        self._arrivals = 0
        self._busy = 0.0
        self._decoded = self._decode_seconds = self._decode_mean = 0.0
        self._decode_seen = 0.0
        self.decode_busy = 0.0
        """The share of time for which decoders are busy."""

    @property
    def saturation(self) -> float:
        """Arrivals over the smaller capacity, the device's or the decoders'; at 1 no more can be served.

        It is at least the decoders' busy share, since a few slow images can occupy them as well.
        """
        return saturation(self.arrival_rate, self.capacity, self.decode_capacity, self.decode_busy)

    def record_batch(self, images: int, seconds: float) -> None:
        """Records a forward pass on the whole device."""
        self._busy += seconds
        if seconds <= 0:
            return
        self._record_seconds(seconds)
        rate = images / seconds
        if images >= self._max_batch_size or rate > self.capacity:
            self._learn(rate)

    def record_stream(self, seconds: float, streams: int, full: bool) -> None:
        """Records an image in one of ``streams``.

        Only if all streams were busy (``full``) does it show the capacity, since a stream alone is faster.
        """
        self._busy += seconds / streams
        self._record_seconds(seconds)
        if full and seconds > 0:
            self._learn(streams / seconds)

    def _record_seconds(self, seconds: float) -> None:
        self.seconds += (_NEWEST if self.seconds else 1.0) * (seconds - self.seconds)

    def _learn(self, rate: float) -> None:
        self.capacity += _NEWEST * (rate - self.capacity)

    def update(
        self,
        now: float,
        arrivals: int,
        decoded: float = 0.0,
        decode_seconds: float = 0.0,
        threads: float = 0.0,
        decode_busy: float = 0.0,
    ) -> None:
        """Updates the rates to the time ``now``.

        Sums since the beginning: ``arrivals`` and ``decoded`` images, ``decode_seconds`` spent on the decoded ones, and
        ``decode_busy`` seconds spent on all, unfinished ones included. ``threads`` is the present number of decoders.
        """
        elapsed = now - self._at
        if elapsed <= 0:
            return
        weight = 1 - math.exp(-elapsed / _WINDOW)
        self.arrival_rate += weight * ((arrivals - self._arrivals) / elapsed - self.arrival_rate)
        self.busy_ratio += weight * (min(1.0, self._busy / elapsed) - self.busy_ratio)
        self._at, self._arrivals, self._busy = now, arrivals, 0.0
        busy = (decode_busy - self._decode_seen) / elapsed / threads if threads else 0.0
        self._decode_seen = decode_busy
        self.decode_busy += weight * (busy - self.decode_busy)
        self._update_decoding(weight, decoded, decode_seconds, threads)

    def _update_decoding(self, weight: float, decoded: float, seconds: float, threads: float) -> None:
        images = decoded - self._decoded
        if images > 0:
            mean = (seconds - self._decode_seconds) / images
            self._decode_mean += (weight if self._decode_mean else 1.0) * (mean - self._decode_mean)
            self._decoded, self._decode_seconds = decoded, seconds
        self.decode_capacity = threads / self._decode_mean if self._decode_mean > 0 else 0.0


def saturation(arrivals: float, capacity: float, decode_capacity: float, decode_busy: float) -> float:
    """The saturation (see `LoadMeter.saturation`) from rates in images a second and a share of time."""
    narrowest = min((rate for rate in (capacity, decode_capacity) if rate), default=0.0)
    return max(arrivals / narrowest if narrowest else 0.0, decode_busy)
