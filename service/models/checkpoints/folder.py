"""A checkpoint's files by name, on this host or in a repository of a hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import CheckpointError


@dataclass(frozen=True)
class Folder:
    """A set of files. ``name`` is its name in answers and messages, ``source`` says where it came from.

    ``locate`` returns the path of a file, downloaded if need be, or None if the checkpoint has no such file; it
    raises `CheckpointError` if that cannot be found out.
    """

    name: str
    source: str
    locate: Callable[[str], Path | None]
    is_local: bool = False

    def find(self, name: str) -> Path | None:
        """Returns the path of a file of this plain name, or None. Raises `CheckpointError`."""
        if not name or Path(name).name != name or "\\" in name:
            raise CheckpointError(f"'{self.name}' names a file '{name[:80]}' outside its own folder")
        return self.locate(name)

    def need(self, name: str) -> Path:
        """Returns the path of a required file. Raises `CheckpointError` if it is absent."""
        path = self.find(name)
        if path is None:
            raise CheckpointError(f"'{self.name}' lacks its file {name}; fetch or write the checkpoint again")
        return path

    def json(self, name: str) -> dict[str, Any] | None:
        """Returns the JSON object in a file, or None if there is no such file. Raises `CheckpointError`."""
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
    """Returns a folder of this host."""

    def locate(name: str) -> Path | None:
        return path / name if (path / name).is_file() else None

    return Folder(path.resolve().name, f"directory {path.resolve().name}", locate, is_local=True)
