"""Reads and writes this project's checkpoint directory: one JSON file beside the tensors.

config.json         {"format": "imagenet-serve", "version": 1, "name", "architecture",
                     "activation", "preprocessing", "classes": [{"class_id", "wnid", "label"}] | null}
model.safetensors   torchvision's key names, float16 or float32
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast, get_args

from safetensors.torch import save_file
from torch import Tensor

from service.errors import CheckpointError
from service.labels import ClassLabel
from service.models.cache import file_sha256
from service.models.checkpoints.checkpoint import Activation, Checkpoint
from service.models.checkpoints.folder import Folder
from service.models.checkpoints.tensors.files import read_safetensors
from service.models.checkpoints.tensors.state_dict import with_batch_counters
from service.models.configuration import from_json, to_json
from service.preprocess import Preprocessing

FORMAT = "imagenet-serve"
_VERSION = 1
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


def read(folder: Folder, document: dict[str, Any]) -> Checkpoint:
    """Reads a directory whose ``config.json`` is ``document``. Raises `CheckpointError`."""
    if document.get("version") != _VERSION:
        raise CheckpointError(
            f"'{folder.name}' is of version {document.get('version')} of our format and this program reads "
            f"version {_VERSION}; install a newer imagenet-serve"
        )
    weights = folder.need(_WEIGHTS)
    try:
        configuration = from_json(document["architecture"])
        return Checkpoint(
            configuration=configuration,
            state_dict=_tensors(weights),
            preprocessing=Preprocessing.from_json(document["preprocessing"]),
            classes=_classes(document["classes"], configuration.num_classes),
            activation=_activation(document["activation"]),
            name=str(document["name"]),
            source=folder.source,
            sha256=file_sha256(weights),
            feature_pooling=_feature_pooling(document.get("feature_pooling", "avg")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the config.json of '{folder.name}' does not follow the format ({error}); convert the "
            "original again with: imagenet-serve convert SOURCE DIR"
        ) from error


def write(checkpoint: Checkpoint, directory: Path, *, notes: Mapping[str, Any] | None = None) -> None:
    """Writes ``checkpoint`` so that `read` returns an equal one. Raises `CheckpointError` if the folder is not
    writable.

    ``notes`` are further entries of ``config.json``, any JSON, for people; `read` ignores them.
    """
    document = {
        "format": FORMAT,
        "version": _VERSION,
        "name": checkpoint.name,
        "architecture": to_json(checkpoint.configuration),
        "activation": checkpoint.activation,
        "feature_pooling": checkpoint.feature_pooling,
        "preprocessing": checkpoint.preprocessing.to_json(),
        "classes": None if checkpoint.classes is None else [asdict(label) for label in checkpoint.classes],
        **(notes or {}),
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {key: tensor.detach().contiguous() for key, tensor in checkpoint.state_dict.items()}
        save_file(tensors, directory / _WEIGHTS)
        _as_any_other_file(directory / _WEIGHTS)
        (directory / _CONFIG).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
    except OSError as error:
        raise CheckpointError(
            f"'{directory.name}' cannot be written: {error.strerror}; choose another folder"
        ) from error


def _feature_pooling(value: Any) -> Literal["avg", "max"]:
    if value == "avg":
        return "avg"
    if value == "max":
        return "max"
    raise ValueError(f"feature_pooling is {value!r}, not avg or max")


def _as_any_other_file(path: Path) -> None:
    """Sets the mode that the user's umask gives any file: safetensors writes for the owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def _tensors(path: Path) -> dict[str, Tensor]:
    """Reads the tensors unchanged: their names are the network's."""
    tensors = with_batch_counters(read_safetensors(path))
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() and not key.endswith("num_batches_tracked"):
            raise CheckpointError(
                f"'{path.name}' holds '{key}' as {tensor.dtype}; only float weights can be served"
            )
    return tensors


def _classes(entries: list[dict[str, Any]] | None, count: int) -> tuple[ClassLabel, ...] | None:
    if (0 if entries is None else len(entries)) != count:
        raise ValueError(f"its classes are not the {count} of its architecture")
    if entries is None:
        return None
    classes = tuple(ClassLabel(entry["class_id"], entry["wnid"], entry["label"]) for entry in entries)
    # Ids need not be 0, 1, 2, ...: a model of some of ImageNet's classes answers with ImageNet's own ids.
    ids = [entry.class_id for entry in classes]
    if ids != sorted(set(ids)):
        raise ValueError("its class_ids do not ascend")
    return classes


def _activation(value: str) -> Activation:
    if value not in get_args(Activation):
        raise ValueError(f"there is no activation '{value}'")
    return cast(Activation, value)
