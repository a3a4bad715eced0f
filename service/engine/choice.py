"""The choice of the engine for the next image: pure arithmetic over each engine's measurements.

The image goes to the engine that would finish it first, by its queue and its measured rates. So a device that is twice
as fast gets twice as many images, and one that is delayed gets none until it has caught up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from service.engine.estimate import QueueState, ServiceRates


class Offer(NamedTuple):
    """The state of an engine that could take an image."""

    pace: ServiceRates
    backlog: QueueState
    room: bool
    """True if it has a free slot for this image."""


def finish(offer: Offer) -> float:
    """Seconds until the device would have run an image that arrives now, after all that are queued."""
    pace, backlog = offer.pace, offer.backlog
    left = max(0.0, pace.seconds - backlog.running_for) if backlog.running else 0.0
    waiting = max(0, backlog.images - backlog.running)
    return left + (waiting / pace.capacity if pace.capacity else 0.0) + pace.seconds


def in_order(offers: Sequence[Offer], turn: int) -> list[int]:
    """The indices of the offers with room, the best first. Equal ones take turns by ``turn``, the count of images."""
    count = len(offers)
    places = [place for place, offer in enumerate(offers) if offer.room]
    return sorted(
        places,
        key=lambda place: (finish(offers[place]), offers[place].backlog.images, (place - turn) % count),
    )
