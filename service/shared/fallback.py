"""Steps down: something optional that could not be had, so that the service goes on without it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

from service.errors import StartError

log = logging.getLogger(__name__)

#: Characters of a reason; it is a label of a metric, too.
_LONGEST = 160


class Fallback(NamedTuple):
    """``what`` was given up, in one word of ours; ``why``, in a sentence for people."""

    what: str
    why: str


class Fallbacks:
    """Those of one start, each told once: to the log here, later on ``/model`` and ``/metrics``."""

    def __init__(self) -> None:
        self._known: dict[str, Fallback] = {}

    def __iter__(self) -> Iterator[Fallback]:
        return iter(self._known.values())

    def note(self, what: str, why: str | BaseException) -> Fallback:
        """``what`` cannot be had, because of ``why``. Returns what is known of it, which is its first reason."""
        if what not in self._known:
            told = Fallback(what, why if isinstance(why, str) else sentence(why))
            self._known[what] = told
            log.warning("going on without %s: %s", *told)
        return self._known[what]


def sentence(error: BaseException) -> str:
    """The sentence of an error that may come with pages: a compiler's last line says what it is about."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[-1] if lines else ""
    name = type(error).__name__
    # Ours are sentences by themselves.
    own = isinstance(error, (StartError, ValueError)) and said
    return (said if own else f"{name}: {said}" if said else name)[:_LONGEST]
