"""Parses numbers in clients' headers. (pydantic parses those in JSON.)"""

from __future__ import annotations

import math

from service.errors import InvalidParameter

#: The largest number of digits that are parsed: longer numbers exceed every limit, and parsing them takes long.
_DIGITS = 18


def digits(text: str) -> int | None:
    """Parses a whole number in ASCII digits; 10**18 for longer ones, None for anything else."""
    if not text.isascii() or not text.isdecimal():
        return None
    text = text.lstrip("0") or "0"
    return int(text) if len(text) <= _DIGITS else 10**_DIGITS


def whole(text: str, name: str, most: int) -> int:
    """Parses a whole number from 0 to ``most``. Raises `InvalidParameter` with the ``name``."""
    number = digits(text)
    if number is None or number > most:
        raise InvalidParameter(f"{name} must be a whole number from 0 to {most}")
    return number


def positive(text: str, name: str) -> float:
    """Parses a number above 0. Raises `InvalidParameter` with the ``name``."""
    try:
        number = float(text) if text.isascii() and "_" not in text else 0.0
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise InvalidParameter(f"{name} must be a number above 0")
    return number
