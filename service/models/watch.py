"""When the canary is due, and what follows from a wrong answer to it: rules without a clock or a device.

64 passes through one place ─▶ the canary goes there next
wrong ─▶ the same once more ─▶ wrong again: the device gets no more work
                            └▶ right: forgiven, unless that happened lately
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

from service.shared.batches import BatchReport, DeviceFailed

log = logging.getLogger(__name__)

Place = TypeVar("Place", bound=Hashable)

#: Passes between two looks at the canary. One of its own costs as much as a pass: 1.5 % of what a busy device does.
CANARY_EVERY = 64
#: Right answers to the canary after which a wrong one that came right is forgiven.
_FORGIVING = 1000

_ONCE = "the device gave a wrong answer to the canary image; the same was right when it was run again"
_AGAIN = "the device gave wrong answers to the canary image, now and then"
_TWICE = (
    "the device gave wrong answers to the canary image twice (its memory or its arithmetic is damaged, or the model's "
    "weights on it are)"
)


class Watch(Generic[Place]):
    """Counts passes by the place where they ran, whose memory and kernels are its own. Safe in several threads."""

    def __init__(self, places: Iterable[Place] = (), every: int = CANARY_EVERY) -> None:
        self._every = every
        #: The one that has seen the canary least recently comes first.
        self._since = dict.fromkeys(places, 0)
        self._lock = threading.Lock()

    def ran(self, place: Place) -> None:
        """A pass there. A place that is not watched is ignored."""
        with self._lock:
            if place in self._since:
                self._since[place] += 1

    def is_due(self, place: Place) -> bool:
        """Whether the next pass there should be the canary's."""
        return self._since[place] >= self._every

    @property
    def due(self) -> bool:
        """Whether any place is."""
        with self._lock:
            return any(count >= self._every for count in self._since.values())

    def next(self) -> Place:
        """Where the canary goes: where it is most overdue, else where it was least recently."""
        with self._lock:
            most = max(self._since, key=lambda place: self._since[place])
            return most if self._since[most] >= self._every else next(iter(self._since))

    def looked(self, place: Place) -> None:
        """The canary was there."""
        with self._lock:
            self._since.pop(place)
            self._since[place] = 0


class Trust:
    """In one device, by what the canary's answers were."""

    def __init__(self) -> None:
        self._right = _FORGIVING
        """Right answers since one was wrong."""

    def judge(self, wrong: int, looked: int, again: Callable[[], int]) -> BatchReport:
        """What there is to tell: ``wrong`` of ``looked`` answers were; ``again`` runs the same and says how many are.

        Raises `DeviceFailed` when some are wrong again. The rows are for the caller to fill in.
        """
        if not wrong:
            self._right += looked
            return BatchReport(0, canaries=looked)
        log.error("the canary's answer was wrong; the same runs again")
        still = again()
        if still:
            raise DeviceFailed(_TWICE, mismatches=wrong + still)
        forgiven, self._right = self._right >= _FORGIVING, 0
        log.error("%s", _ONCE if forgiven else _AGAIN)
        return BatchReport(0, wrong, "" if forgiven else _AGAIN, canaries=2 * looked)
