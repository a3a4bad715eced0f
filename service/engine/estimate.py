"""The estimated time of an answer to an image that arrives now: pure arithmetic over measurements.

    answered = max(the device has finished the images ahead, this image is decoded) + one forward pass

Of the images ahead only full batches count, at the measured capacity, so the estimate is too short rather than too
long. An image that is admitted by an estimate too short gets 504 at its deadline. One that is refused by an estimate
too long loses an answer that was possible.
"""

from __future__ import annotations

from typing import NamedTuple


class ServiceRates(NamedTuple):
    """The measured rates. All are 0 before the first measurement."""

    seconds: float
    """Seconds of a recent forward pass."""
    capacity: float
    """Images a second of the device."""
    max_batch_size: int
    decode: float
    """Seconds that a decoder takes for an image."""
    threads: int
    """The number of decoders."""


class QueueState(NamedTuple):
    """The images ahead of a new one."""

    images: int
    """The admitted images with an earlier or the same deadline, the running ones included."""
    running: int
    """The images in the running batch."""
    running_for: float
    """Seconds since the running batch was started."""
    decoding: int
    """The images that this front-end decodes or has queued for decoding."""


def seconds_until_answered(pace: ServiceRates, backlog: QueueState) -> float:
    """Seconds from now until the answer; 0, which refuses nothing, if no image is ahead or nothing is measured."""
    if not backlog.images or not pace.seconds or not pace.capacity:
        return 0.0
    left = max(0.0, pace.seconds - backlog.running_for) if backlog.running else 0.0
    batches = max(0, backlog.images - backlog.running) // pace.max_batch_size
    device = left + batches * pace.max_batch_size / pace.capacity
    turns = max(1.0, (backlog.decoding + 1) / pace.threads) if pace.threads else 1.0
    return max(device, turns * pace.decode) + pace.seconds
