"""The sample photos that are part of the package, for the demo and the page."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

_PACKAGE = Path(__file__).resolve().parents[1]

#: The folder of the samples in an installed wheel, and in a checkout.
_FOLDERS = (_PACKAGE / "_samples", _PACKAGE.parent / "samples")
#: The photos of which the demo model is most certain come first; the others follow by name.
_ORDER = ("coffee", "red-panda", "banana", "goldfish")
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


class Sample(NamedTuple):
    """One photo; ``name`` is its title for people."""

    name: str
    path: Path


def samples() -> list[Sample]:
    """All samples, best first; empty if the installation has none."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    files = sorted(folder.iterdir(), key=_rank) if folder else []
    return [Sample(_name(path), path) for path in files if path.suffix.lower() in _SUFFIXES]


def _rank(path: Path) -> tuple[int, str]:
    place = _ORDER.index(path.stem) if path.stem in _ORDER else len(_ORDER)
    return place, path.name


def _name(path: Path) -> str:
    return path.stem.replace("-", " ").capitalize()
