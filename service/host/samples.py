"""The sample photographs that come with the service: for the demo, for the page, for whoever has none at hand."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

_PACKAGE = Path(__file__).resolve().parents[1]

#: An installed wheel carries the files inside the package, a checkout beside it.
_FOLDERS = (_PACKAGE / "_samples", _PACKAGE.parent / "samples")
#: What the demo model is surest of comes first; photographs that are not listed follow by name.
_ORDER = ("red-panda", "coffee", "goldfish")
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


class Sample(NamedTuple):
    """One photograph; ``name`` is what people are shown."""

    name: str
    path: Path


def samples() -> list[Sample]:
    """Every sample, best first; empty where the installation has none."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    files = sorted(folder.iterdir(), key=_rank) if folder else []
    return [Sample(_name(path), path) for path in files if path.suffix.lower() in _SUFFIXES]


def _rank(path: Path) -> tuple[int, str]:
    place = _ORDER.index(path.stem) if path.stem in _ORDER else len(_ORDER)
    return place, path.name


def _name(path: Path) -> str:
    return path.stem.replace("-", " ").capitalize()
