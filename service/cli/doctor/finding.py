"""The result of one check of `imagenet-serve doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """The severity of a finding. Only FAIL means that the service would not run as it is configured."""

    PASS = "PASS"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``advice`` says what to do; only a finding with PASS has none."""

    check: str
    level: Level
    found: str
    advice: str = ""


def passed(check: str, found: str) -> Finding:
    return Finding(check, Level.PASS, found)


def warned(check: str, found: str, advice: str) -> Finding:
    return Finding(check, Level.WARN, found, advice)


def failed(check: str, found: str, advice: str) -> Finding:
    return Finding(check, Level.FAIL, found, advice)
