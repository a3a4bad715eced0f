"""When an image that comes now would be answered: pure arithmetic over what was measured.

    answered = max(the device is through with what is ahead, this image is decoded) + one forward pass

Of what is ahead only full batches count, at the capacity that was measured, so that the estimate is rather too
short than too long: who is admitted too boldly gets a 504 at the deadline, who is refused too boldly loses an
answer that there was time for.
"""

from __future__ import annotations

from typing import NamedTuple


class ServiceRates(NamedTuple):
    """What was measured. Seconds, and images a second; 0 before anything was."""

    seconds: float
    """A forward pass, lately."""
    capacity: float
    max_batch_size: int
    decode: float
    """An image in a decoding thread, lately."""
    threads: int


class QueueState(NamedTuple):
    """What is there already."""

    images: int
    """Admitted and to be answered not later than this one; those that run are among them."""
    running: int
    """Images in the batch that runs."""
    running_for: float
    """Seconds since it was started."""
    decoding: int
    """Images that this front-end decodes, or is going to."""


def seconds_until_answered(pace: ServiceRates, backlog: QueueState) -> float:
    """Seconds from now; 0 where nothing is ahead or nothing was measured, so that nobody is refused for it."""
    if not backlog.images or not pace.seconds or not pace.capacity:
        return 0.0
    left = max(0.0, pace.seconds - backlog.running_for) if backlog.running else 0.0
    batches = max(0, backlog.images - backlog.running) // pace.max_batch_size
    device = left + batches * pace.max_batch_size / pace.capacity
    turns = max(1.0, (backlog.decoding + 1) / pace.threads) if pace.threads else 1.0
    return max(device, turns * pace.decode) + pace.seconds
