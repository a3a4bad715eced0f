"""Suggestions for misspelt names, and lists of values in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def nearest(written: str, known: Iterable[str]) -> str | None:
    """The known name most similar to ``written``, ignoring case, dashes and blanks; None if none is similar."""
    names = {_plain(name): name for name in known}
    found = get_close_matches(_plain(written), names, n=1, cutoff=0.6)
    return names[found[0]] if found else None


def did_you_mean(written: str, known: Iterable[str]) -> str:
    """The suggestion ``; did you mean 'top_k'?``; empty if no name is similar."""
    name = nearest(written, known)
    return f"; did you mean '{name}'?" if name is not None else ""


def one_of(values: Sequence[str]) -> str:
    """The values as a list in words: ``a``, ``a or b``, ``a, b or c``."""
    *others, last = values
    return f"{', '.join(others)} or {last}" if others else last


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_")
