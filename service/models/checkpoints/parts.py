"""The tensors of a folder, in one file or in parts, under the names that transformers, Accelerate and timm write.

model.safetensors                 or pytorch_model.bin
model.safetensors.index.json      {"weight_map": {tensor: part}}, and the parts beside it; so with pytorch_model.bin
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from service.errors import CheckpointError
from service.models.cache import file_sha256
from service.models.checkpoints.folder import Folder
from service.models.checkpoints.tensors.files import read_values

#: The pickle only where there is nothing safer.
NAMES = ("model.safetensors", "pytorch_model.bin")


def read_parts(folder: Folder) -> tuple[Any, str]:
    """The values, and the SHA-256 of their file; of several, that of their hashes. Raises `CheckpointError`."""
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
        raise CheckpointError(
            f"{name}.index.json of '{folder}' does not say which parts there are; fetch it again"
        )
    return sorted(parts)
