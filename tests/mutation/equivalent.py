"""Mutants that no test can find, since the program does the same: `equivalent.toml` says of each why."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.mutation.mutants import Mutant

_FILE = Path(__file__).with_name("equivalent.toml")


def entries() -> list[dict[str, str]]:
    """Each with ``file``, ``before``, ``after`` (the stripped line) and ``reason``."""
    found: list[dict[str, str]] = tomllib.loads(_FILE.read_text())["equivalent"]
    return found


def reason(mutant: Mutant) -> str | None:
    """Why the mutant is equivalent; None for one that a test could find."""
    for entry in entries():
        if (entry["file"], entry["before"], entry["after"]) == (mutant.file, mutant.before, mutant.after):
            return entry["reason"]
    return None
