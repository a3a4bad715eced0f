"""Decides when the canary is due and what a wrong answer to it means. Pure rules: no clock, no device.

so many passes at one place ─▶ the next canary runs there
wrong ─▶ the canary once more ─▶ wrong again: the device gets no more work
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

#: Passes at one place within which a damaged weight is to be found. A canary costs as much as a pass: one in so many
#: takes 1.5 % of a busy device's work.
CANARY_EVERY = 64
#: Right answers to the canary after which one wrong answer that is right when repeated is forgiven.
_FORGIVING = 1000

_ONCE = "the device gave a wrong answer to the canary image; the same was right when it was run again"
_AGAIN = "the device gave wrong answers to the canary image, now and then"
_TWICE = (
    "the device gave wrong answers to the canary image twice (its memory or its arithmetic is damaged, or the model's "
    "weights on it are)"
)


class Watch(Generic[Place]):
    """Counts passes by the place where they ran; each place has its own memory and kernels. Thread-safe."""

    def __init__(self, places: Iterable[Place] = (), every: int = CANARY_EVERY) -> None:
        self._every = every
        #: Passes since the last canary, by place; the place whose canary is longest ago comes first.
        self._since = dict.fromkeys(places, 0)
        self._lock = threading.Lock()

    def ran(self, place: Place) -> None:
        """Counts a pass at ``place``. A place that is not watched is ignored."""
        with self._lock:
            if place in self._since:
                self._since[place] += 1

    def is_due(self, place: Place) -> bool:
        """Returns True if the next pass at ``place`` should be the canary."""
        return self._since[place] >= self._every

    @property
    def due(self) -> bool:
        """True if any place is due."""
        with self._lock:
            return any(count >= self._every for count in self._since.values())

    def next(self) -> Place:
        """Returns the place for the next canary: the most overdue one, else the one whose canary is longest ago."""
        with self._lock:
            most = max(self._since, key=lambda place: self._since[place])
            return most if self._since[most] >= self._every else next(iter(self._since))

    def checked(self, place: Place) -> None:
        """Records that the canary ran at ``place``."""
        with self._lock:
            self._since.pop(place)
            self._since[place] = 0


class Trust:
    """Trust in one device, by its answers to the canary."""

    def __init__(self) -> None:
        self._right = _FORGIVING
        """Right answers since the last wrong one."""

    def judge(self, wrong: int, checked: int, again: Callable[[], int]) -> BatchReport:
        """Returns a report: ``wrong`` of ``checked`` answers were wrong; ``again`` repeats them and counts wrong ones.

        Raises `DeviceFailed` if some are wrong again. The caller fills in the report's rows.
        """
        if not wrong:
            self._right += checked
            return BatchReport(0, canaries=checked)
        log.error("the canary's answer was wrong; the same runs again")
        still = again()
        if still:
            raise DeviceFailed(_TWICE, mismatches=wrong + still)
        forgiven, self._right = self._right >= _FORGIVING, 0
        log.error("%s", _ONCE if forgiven else _AGAIN)
        return BatchReport(0, wrong, "" if forgiven else _AGAIN, canaries=2 * checked)
