"""Which of several engines gets the next image: pure arithmetic over what each has shown.

The one that would be through with it first, by what it has before it and by its measured pace. So a device that is
twice as fast gets twice as much, and one that is held up gets nothing until it has caught up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from service.engine.estimate import QueueState, ServiceRates


class Offer(NamedTuple):
    """An engine that could take an image."""

    pace: ServiceRates
    backlog: QueueState
    room: bool
    """Whether it has a place for this one."""


def finish(offer: Offer) -> float:
    """Seconds until the device would have run an image that comes now, behind all that it has."""
    pace, backlog = offer.pace, offer.backlog
    left = max(0.0, pace.seconds - backlog.running_for) if backlog.running else 0.0
    waiting = max(0, backlog.images - backlog.running)
    return left + (waiting / pace.capacity if pace.capacity else 0.0) + pace.seconds


def in_order(offers: Sequence[Offer], turn: int) -> list[int]:
    """The places of those that have room, the best first. Equal ones take turns: ``turn`` counts the images."""
    count = len(offers)
    places = [place for place, offer in enumerate(offers) if offer.room]
    return sorted(
        places,
        key=lambda place: (finish(offers[place]), offers[place].backlog.images, (place - turn) % count),
    )
