"""Work for an engine that nobody asks anything: a step at a time, and none while somebody is there."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

#: Seconds without a request after which there is time to spare, and between two looks.
PATIENCE, _LOOK = 30.0, 1.0

#: What was seen: how many requests have come until now, and whether any is under way.
Seen = tuple[int, bool]


class SpareTime:
    """A thread that takes the steps of ``work`` whenever nothing new has been ``seen`` for ``patience`` seconds."""

    def __init__(
        self,
        work: Iterator[None],
        seen: Callable[[], Seen],
        *,
        patience: float = PATIENCE,
        look: float = _LOOK,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._work, self._seen, self._patience, self._look, self._clock = work, seen, patience, look, clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spare-time", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns after the step that is being taken."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._spend()
        except Exception:
            # The border of this thread: what it does is worth nothing to who is served.
            log.exception("work in spare time failed")

    def _spend(self) -> None:
        last, since = self._seen(), self._clock()
        while not self._stop.wait(self._look):
            now = self._seen()
            if now != last or now[1]:
                last, since = now, self._clock()
            elif self._clock() - since >= self._patience and self._finishes(last):
                return

    def _finishes(self, last: Seen) -> bool:
        """Takes steps until somebody comes. Returns whether there are no more."""
        while not self._stop.is_set() and self._seen() == last:
            try:
                next(self._work)
            except StopIteration:
                return True
        return False
