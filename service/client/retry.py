"""When a request is sent again: decided here, waited for and sent elsewhere.

Classifying changes nothing, so a second time does no harm.
"""

from __future__ import annotations

import random
import time
from collections.abc import Generator

import httpx

from service.client.errors import Broken, Unreachable

#: Seconds until another try where the service did not say, and how far pauses are spread: those who were too many
#: at once should not come back at once.
_PAUSE, _SPREAD = 0.5, 0.25
#: Tries for a request on whose way the connection broke: it may be what breaks it.
_BROKEN = 3
#: Statuses that another try may change.
AGAIN_LATER = frozenset({429, 502, 503, 504})

#: Yields seconds to wait before the next try, takes what became of it, returns the answer that counts.
Tries = Generator[float, httpx.Response | httpx.TransportError, httpx.Response]


class Patience:
    """For how long requests to one service are sent again. ``seconds`` is for one request, 0 for never.

    ``deadlined`` says that its callers set deadlines of their own: one that was missed is final for them.
    """

    def __init__(self, url: str, seconds: float, *, deadlined: bool) -> None:
        self._url = url
        self._seconds = seconds
        self._deadlined = deadlined
        self._met = False
        """Whether the service has answered once: then a refused connection may be a restart."""

    def tries(self, *, several: bool = True) -> Tries:
        """One request's. Raises `Unreachable`, or `Broken` after the same request broke the connection thrice."""
        give_up = time.monotonic() + self._seconds
        broken = 0
        outcome = yield 0.0
        while True:
            if isinstance(outcome, httpx.Response):
                self._met = True
                pause = pause_before_retry(outcome, deadlined=self._deadlined) if several else None
                if pause is None or time.monotonic() + pause > give_up:
                    return outcome
                outcome = yield pause * random.uniform(1, 1 + _SPREAD)
            elif isinstance(outcome, httpx.ConnectError | httpx.UnsupportedProtocol):
                if not (several and self._met) or time.monotonic() + _PAUSE > give_up:
                    raise Unreachable(f"there is no server at {self._url}: {outcome}") from outcome
                outcome = yield _PAUSE * random.uniform(1, 1 + _SPREAD)
            else:
                broken += 1
                if not several or broken == _BROKEN:
                    raise Broken(str(outcome) or type(outcome).__name__) from outcome
                outcome = yield 0.0


def pause_before_retry(answer: httpx.Response, *, deadlined: bool = False) -> float | None:
    """Seconds to wait before the same request is worth another try; None if it is not.

    ``deadlined``: see `Patience`.
    """
    if answer.status_code not in AGAIN_LATER or (deadlined and answer.status_code == 504):
        return None
    try:
        return max(float(answer.headers.get("retry-after") or _PAUSE), 0.0)
    except ValueError:  # a date, which this service never sends; something in between may
        return _PAUSE
