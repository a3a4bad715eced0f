"""A checkpoint's files by name, wherever they lie: a folder of this host, a repository of a hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import CheckpointError


@dataclass(frozen=True)
class Folder:
    """``name`` is what answers and messages call it, ``source`` says where it came from.

    ``locate`` gives the path of a file, fetched if need be, or None where the checkpoint has no such
    file; it raises `CheckpointError` when that cannot be known.
    """

    name: str
    source: str
    locate: Callable[[str], Path | None]
    is_local: bool = False

    def find(self, name: str) -> Path | None:
        """The path of a file of this plain name, or None. Raises `CheckpointError`."""
        if not name or Path(name).name != name or "\\" in name:
            raise CheckpointError(f"'{self.name}' names a file '{name[:80]}' outside its own folder")
        return self.locate(name)

    def need(self, name: str) -> Path:
        """The path of a file that the checkpoint cannot do without. Raises `CheckpointError`."""
        path = self.find(name)
        if path is None:
            raise CheckpointError(f"'{self.name}' lacks its file {name}; fetch or write the checkpoint again")
        return path

    def json(self, name: str) -> dict[str, Any] | None:
        """The JSON object in a file, or None where there is no such file. Raises `CheckpointError`."""
        path = self.find(name)
        if path is None:
            return None
        try:
            document = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{name} of '{self.name}' cannot be read as JSON; write it anew") from error
        if not isinstance(document, dict):
            raise CheckpointError(f"{name} of '{self.name}' is no JSON object; write it anew")
        return document


def local(path: Path) -> Folder:
    """A folder of this host."""

    def locate(name: str) -> Path | None:
        return path / name if (path / name).is_file() else None

    return Folder(path.resolve().name, f"directory {path.resolve().name}", locate, is_local=True)
