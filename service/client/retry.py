"""The decision to send a request again. The clients do the waiting and the sending.

Classifying changes nothing on the server, so a request may be sent twice.
"""

from __future__ import annotations

import random
import time
from collections.abc import Generator

import httpx

from service.client.errors import Broken, Unreachable

#: Seconds before another try unless the service says how long. Pauses are up to `_SPREAD` (a share) longer at random,
#: so that clients that were refused together do not come back together.
_PAUSE, _SPREAD = 0.5, 0.25
#: Tries of a request whose connection breaks: the request itself may be the cause.
_BROKEN = 3
#: Statuses after which another try may succeed.
AGAIN_LATER = frozenset({429, 502, 503, 504})

#: Yields the seconds to wait before the next try, is sent the outcome of that try, and returns the final answer.
Tries = Generator[float, httpx.Response | httpx.TransportError, httpx.Response]


class Patience:
    """The rule that says for how long a request to one service is sent again: ``seconds``, or never for 0.

    With ``deadlined`` the requests have deadlines of their own, so 504 (deadline missed) is final.
    """

    def __init__(self, url: str, seconds: float, *, deadlined: bool) -> None:
        self._url = url
        self._seconds = seconds
        self._deadlined = deadlined
        self._met = False
        """True once the service has answered: from then on a refused connection may be a restart."""

    def tries(self, *, several: bool = True) -> Tries:
        """The tries of one request. Raises `Unreachable`, or `Broken` when the connection broke `_BROKEN` times."""
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
    """Seconds to wait before the request is sent again; None if it should not be.

    ``deadlined``: see `Patience`.
    """
    if answer.status_code not in AGAIN_LATER or (deadlined and answer.status_code == 504):
        return None
    try:
        return max(float(answer.headers.get("retry-after") or _PAUSE), 0.0)
    except ValueError:  # a date: this service never sends one, but a proxy may
        return _PAUSE
