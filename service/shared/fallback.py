"""Fallbacks: optional features that are missing or refused, without which the service goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

from service.errors import StartError

log = logging.getLogger(__name__)

#: Characters of a reason at most; it is also a metric's label.
_MAX_REASON = 160


class Fallback(NamedTuple):
    """``what`` the service goes on without, in one word, and ``why``, in a sentence for people."""

    what: str
    why: str


class Fallbacks:
    """The fallbacks of one start. Each is logged once; ``/model`` and ``/metrics`` show them later."""

    def __init__(self) -> None:
        self._known: dict[str, Fallback] = {}

    def __iter__(self) -> Iterator[Fallback]:
        return iter(self._known.values())

    def add(self, what: str, why: str | BaseException) -> Fallback:
        """Records and logs that the service goes on without ``what``. Returns the fallback with its first reason."""
        if what not in self._known:
            told = Fallback(what, why if isinstance(why, str) else sentence(why))
            self._known[what] = told
            log.warning("going on without %s: %s", *told)
        return self._known[what]


def sentence(error: BaseException) -> str:
    """One sentence for an error with a long message: its last line, which in a compiler's output names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[-1] if lines else ""
    name = type(error).__name__
    # The messages of these two are sentences already and need no class name.
    own = isinstance(error, (StartError, ValueError)) and said
    return (said if own else f"{name}: {said}" if said else name)[:_MAX_REASON]
