"""Names that somebody may have meant, and lists of values in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def nearest(written: str, known: Iterable[str]) -> str | None:
    """The known name that is most like ``written``, whatever its case, dashes and blanks; None if none is like it."""
    names = {_plain(name): name for name in known}
    found = get_close_matches(_plain(written), names, n=1, cutoff=0.6)
    return names[found[0]] if found else None


def did_you_mean(written: str, known: Iterable[str]) -> str:
    """``; did you mean 'top_k'?``, or nothing."""
    name = nearest(written, known)
    return f"; did you mean '{name}'?" if name is not None else ""


def one_of(values: Sequence[str]) -> str:
    """``a``, ``a or b``, ``a, b or c``."""
    *others, last = values
    return f"{', '.join(others)} or {last}" if others else last


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_")
