"""Numbers that clients send in headers: one way to read them, one error for what is none.

In JSON, pydantic reads them, within the bounds that the models have.
"""

from __future__ import annotations

import math

from service.errors import InvalidParameter

#: Digits of a number at most: what has more is beyond every limit, and turning it into an int takes its time.
_DIGITS = 18


def digits(text: str) -> int | None:
    """A whole number in ASCII digits, 10**18 for any that has more of them; None for everything else."""
    if not text.isascii() or not text.isdecimal():
        return None
    text = text.lstrip("0") or "0"
    return int(text) if len(text) <= _DIGITS else 10**_DIGITS


def whole(text: str, name: str, most: int) -> int:
    """A whole number from 0 to ``most``. Raises `InvalidParameter` that names it."""
    number = digits(text)
    if number is None or number > most:
        raise InvalidParameter(f"{name} must be a whole number from 0 to {most}")
    return number


def positive(text: str, name: str) -> float:
    """A number above 0, with a fraction or without. Raises `InvalidParameter` that names it."""
    try:
        number = float(text) if text.isascii() and "_" not in text else 0.0
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise InvalidParameter(f"{name} must be a number above 0")
    return number
