"""The tensors of a folder, in one file or in parts, named as transformers, Accelerate and timm name them.

model.safetensors                 or pytorch_model.bin
model.safetensors.index.json      {"weight_map": {tensor: part}}, with the parts beside it (or .bin)
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from service.errors import CheckpointError
from service.models.cache import file_sha256
from service.models.checkpoints.folder import Folder
from service.models.checkpoints.tensors.files import read_values

#: File names of weights; a pickle is read only where there is no safetensors file.
NAMES = ("model.safetensors", "pytorch_model.bin")


def read_parts(folder: Folder) -> tuple[Any, str]:
    """Returns the values and the SHA-256 of their file, or of several files' hashes. Raises `CheckpointError`."""
    paths = _paths(folder)
    if len(paths) == 1:
        return read_values(paths[0]), file_sha256(paths[0])
    values: dict[str, Any] = {}
    for path in paths:
        values |= read_values(path)
    hashes = "".join(file_sha256(path) for path in paths)
    return values, hashlib.sha256(hashes.encode()).hexdigest()


def _paths(folder: Folder) -> list[Path]:
    for name in NAMES:
        whole = folder.find(name)
        if whole is not None:
            return [whole]
        index = folder.json(f"{name}.index.json")
        if index is not None:
            return [folder.need(part) for part in _parts(index, name, folder.name)]
    return [folder.need(NAMES[0])]


def _parts(index: dict[str, Any], name: str, folder: str) -> list[str]:
    mapping = index.get("weight_map")
    parts = {*mapping.values()} if isinstance(mapping, dict) and mapping else set()
    if not parts or not all(isinstance(part, str) and part.endswith(Path(name).suffix) for part in parts):
        raise CheckpointError(f"{name}.index.json of '{folder}' does not list its parts; fetch it again")
    return sorted(parts)
