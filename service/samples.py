"""The sample photographs that come with the service: for the demo, for the page, for whoever has none at hand."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

_HERE = Path(__file__).resolve().parent

#: An installed wheel carries the files inside the package, a checkout beside it.
_FOLDERS = (_HERE / "_samples", _HERE.parent / "samples")
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


class Sample(NamedTuple):
    """One photograph; ``name`` is what people are shown."""

    name: str
    path: Path


def samples() -> list[Sample]:
    """Every sample, by name; empty where the installation has none."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    files = sorted(folder.iterdir()) if folder else []
    return [Sample(_name(path), path) for path in files if path.suffix.lower() in _SUFFIXES]


def _name(path: Path) -> str:
    return path.stem.replace("-", " ").capitalize()
