"""A step down: something optional that could not be had, so that the service goes on without it."""

from __future__ import annotations

from typing import NamedTuple

#: Characters of a reason; it is a label of a metric, too.
_LONGEST = 160


class Fallback(NamedTuple):
    """``what`` was given up, in one word of ours; ``why``, in a sentence for people."""

    what: str
    why: str


def sentence(error: BaseException) -> str:
    """The sentence of an error that may come with pages: a compiler's last line says what it is about."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[-1] if lines else ""
    name = type(error).__name__
    return f"{name}: {said}"[:_LONGEST] if said else name
