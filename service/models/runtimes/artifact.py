"""A converted model on disk: what the cache holds, and what `imagenet-serve quantize` makes.

about.json    see `service.models.runtimes.manifest`; "precision" is "fp32" or "int8", "check" what int8 costs
model.xml     OpenVINO's graph: uint8 [N, H, W, C] → features [N, C', h, w], logits [N, classes]
model.bin     its weights
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.models._openvino import openvino
from service.models.checkpoints import Checkpoint
from service.models.runtimes import manifest
from service.models.runtimes.manifest import fingerprint, libraries

__all__ = [
    "Artifact",
    "cache_directory",
    "cached",
    "fingerprint",
    "libraries",
    "prune",
    "read",
    "refuse_another",
    "write",
]

KIND = manifest.Kind("imagenet-serve-openvino", 1, "quantize")
_GRAPH, _WEIGHTS = "model.xml", "model.bin"

#: Conversions that the cache keeps, the latest used: enough for a host that changes between some models,
#: and not more of its disk (640 MB for a VGG16).
_KEPT = 4


@dataclass(frozen=True)
class Artifact:
    """A converted model with its description, as it was read from a directory."""

    model: openvino.Model
    about: Mapping[str, Any]

    @property
    def precision(self) -> str:
        return str(self.about["precision"])


def write(
    directory: Path, model: openvino.Model, checkpoint: Checkpoint, precision: str, **more: Any
) -> None:
    """Writes an artifact that `read` gives back: whole, or not at all. Replaces one that is there.

    ``more`` goes into ``about.json``. Raises `OSError`.
    """

    def save(folder: Path) -> Sequence[str]:
        try:
            openvino.save_model(model, folder / _GRAPH, compress_to_fp16=False)
        except RuntimeError as error:
            # OpenVINO has no error of its own for a full disk, and says so in five lines.
            raise OSError(str(error).splitlines()[-1]) from error
        return _GRAPH, _WEIGHTS

    more = {"libraries": libraries("openvino", "torch"), **more}
    manifest.write(KIND, directory, save, checkpoint, precision, **more)


def read(directory: Path) -> Artifact:
    """The artifact in a directory. Raises `ConfigurationError` for anything else, or when it is damaged."""
    about = manifest.read(KIND, directory)
    try:
        return Artifact(openvino.Core().read_model(directory / _GRAPH), about)
    except RuntimeError as error:
        raise manifest.unreadable(KIND, directory, error) from error


def refuse_another(artifact: Artifact, checkpoint: Checkpoint, name: str) -> None:
    """Raises `ConfigurationError` unless the artifact was made from this checkpoint."""
    manifest.refuse_another(artifact.about, checkpoint, name, KIND)


def cache_directory() -> Path:
    """Where conversions are kept."""
    return manifest.cache_root() / "openvino"


def cached(checkpoint: Checkpoint, precision: str) -> Path:
    """Where the conversion of this checkpoint lies, by these versions of the libraries and of our code.

    ``precision`` is what it is to be run in: it may decide how the same numbers are best arranged.
    """
    key = {
        "precision": precision,
        "fingerprint": fingerprint(checkpoint),
        "libraries": libraries("openvino", "torch", "torchvision"),
        "code": manifest.code_hash(),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_directory() / digest[:32]


def prune() -> None:
    """Keeps the conversions that were used last, and removes what a killed process left half done."""
    entries = [path for path in cache_directory().iterdir() if path.is_dir()]
    whole = [path for path in entries if not path.name.endswith(".partial")]
    whole.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in whole[_KEPT:]:
        shutil.rmtree(path, ignore_errors=True)
