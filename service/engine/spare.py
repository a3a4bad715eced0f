"""Work for an idle engine: one step at a time, and none while there are requests."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

#: Seconds without a request after which the engine counts as idle, and between two checks.
PATIENCE, _LOOK = 30.0, 1.0

#: An observation: the number of requests so far, and True while any is under way.
Seen = tuple[int, bool]


class SpareTime:
    """A thread that runs steps of ``work`` while ``seen`` has not changed for ``patience`` seconds.

    ``look`` is the time between two observations, in seconds.
    """

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
        """Ends the thread after its present step, and waits for its end."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._run_when_idle()
        except Exception:
            # The border of this thread: its work is optional, and its failure must not affect requests.
            log.exception("work in spare time failed")

    def _run_when_idle(self) -> None:
        last, since = self._seen(), self._clock()
        while not self._stop.wait(self._look):
            now = self._seen()
            if now != last or now[1]:
                last, since = now, self._clock()
            elif self._clock() - since >= self._patience and self._finishes(last):
                return

    def _finishes(self, last: Seen) -> bool:
        """Runs steps until a request arrives. True if there are no more steps."""
        while not self._stop.is_set() and self._seen() == last:
            try:
                next(self._work)
            except StopIteration:
                return True
        return False
