"""A converted model on disk: what the cache holds, and what `imagenet-serve quantize` makes.

about.json    {"format": "imagenet-serve-openvino", "version": 1, "precision": "fp32" | "int8", "fingerprint",
               "model": {"name", "weights", "sha256", "architecture"}, "image": [H, W, C],
               "libraries": {"openvino": ...}, "files": {file: sha256}, "check": {...} or absent}
model.xml     OpenVINO's graph: uint8 [N, H, W, C] → features [N, C', h, w], logits [N, classes]
model.bin     its weights
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from service.errors import ConfigurationError
from service.models._openvino import openvino
from service.models.checkpoints import Checkpoint
from service.models.checkpoints.download import file_sha256
from service.models.configuration import to_json

log = logging.getLogger(__name__)

_FORMAT, _VERSION = "imagenet-serve-openvino", 1
_ABOUT, _GRAPH, _WEIGHTS = "about.json", "model.xml", "model.bin"

#: Conversions that the cache keeps, the latest used: enough for a host that changes between some models,
#: and not more of its disk (550 MB for a VGG16).
_KEPT = 4


@dataclass(frozen=True)
class Artifact:
    """A converted model with its description, as it was read from a directory."""

    model: openvino.Model
    about: Mapping[str, Any]

    @property
    def precision(self) -> str:
        return str(self.about["precision"])


def fingerprint(checkpoint: Checkpoint) -> str:
    """SHA-256 over what decides a model's answers: weights, architecture, normalising, image size."""
    preprocessing = checkpoint.preprocessing
    document = {
        "weights": checkpoint.sha256 or _state_hash(checkpoint),
        "architecture": to_json(checkpoint.configuration),
        "head": checkpoint.classes is not None,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "image": preprocessing.shape,
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _state_hash(checkpoint: Checkpoint) -> str:
    """Of weights that come from no file."""
    digest = hashlib.sha256()
    for key, tensor in sorted(checkpoint.state_dict.items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def libraries(*names: str) -> dict[str, str]:
    """The installed versions of these distributions."""
    return {name: metadata.version(name) for name in names}


def write(
    directory: Path, model: openvino.Model, checkpoint: Checkpoint, precision: str, **more: Any
) -> None:
    """Writes an artifact that `read` gives back: whole, or not at all. Replaces one that is there.

    ``more`` goes into ``about.json``. Raises `OSError`.
    """
    partial = directory.with_name(f"{directory.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir(parents=True)
    try:
        _save(model, partial)
        about = {
            "format": _FORMAT,
            "version": _VERSION,
            "precision": precision,
            "fingerprint": fingerprint(checkpoint),
            "model": {
                "weights": checkpoint.name,
                "sha256": checkpoint.sha256,
                "architecture": to_json(checkpoint.configuration),
            },
            "image": checkpoint.preprocessing.shape,
            "libraries": libraries("openvino", "torch"),
            "files": {name: file_sha256(partial / name) for name in (_GRAPH, _WEIGHTS)},
            **more,
        }
        (partial / _ABOUT).write_text(json.dumps(about, indent=1) + "\n", "utf-8")
        _take_place(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _save(model: openvino.Model, directory: Path) -> None:
    try:
        openvino.save_model(model, directory / _GRAPH, compress_to_fp16=False)
    except RuntimeError as error:
        # OpenVINO has no error of its own for a full disk, and says so in five lines.
        raise OSError(str(error).splitlines()[-1]) from error


def _take_place(partial: Path, directory: Path) -> None:
    """A directory that is not empty cannot be renamed over: it goes aside first."""
    if directory.exists():
        old = directory.with_name(f"{directory.name}.{uuid.uuid4().hex}.partial")
        directory.rename(old)
        shutil.rmtree(old, ignore_errors=True)
    partial.rename(directory)


def read(directory: Path) -> Artifact:
    """The artifact in a directory. Raises `ConfigurationError` for anything else, or when it is damaged."""
    try:
        about = json.loads((directory / _ABOUT).read_text("utf-8"))
        if about["format"] != _FORMAT or about["version"] != _VERSION:
            raise ConfigurationError(
                f"'{directory.name}' is an artifact of another version; make it again with: "
                "imagenet-serve quantize"
            )
        for name, sha256 in about["files"].items():
            if file_sha256(directory / name) != sha256:
                raise ConfigurationError(f"'{directory.name}/{name}' is damaged; make the artifact again")
        return Artifact(openvino.Core().read_model(directory / _GRAPH), about)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ConfigurationError(
            f"runtime: '{directory.name}' is no artifact that can be read ({type(error).__name__}); make one "
            "with: imagenet-serve quantize"
        ) from error


def refuse_another(artifact: Artifact, checkpoint: Checkpoint, name: str) -> None:
    """Raises `ConfigurationError` unless the artifact was made from this checkpoint."""
    if artifact.about.get("fingerprint") != fingerprint(checkpoint):
        model = artifact.about.get("model", {})
        raise ConfigurationError(
            f"the artifact '{name}' was made from the weights {model.get('weights')!r} "
            f"(sha256 {str(model.get('sha256'))[:12]}), and these are {checkpoint.name!r} "
            f"(sha256 {str(checkpoint.sha256)[:12]}): give those to --weights, or quantize these"
        )


def cache_directory() -> Path:
    """Where conversions are kept: ``$XDG_CACHE_HOME/imagenet-serve``, ``~/.cache/imagenet-serve`` without it."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "imagenet-serve" / "openvino"


def cached(checkpoint: Checkpoint) -> Path:
    """Where the conversion of this checkpoint lies, by these versions of the libraries and of our code."""
    key = {
        "fingerprint": fingerprint(checkpoint),
        "libraries": libraries("openvino", "torch", "torchvision"),
        "code": _code_hash(),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_directory() / digest[:32]


def _code_hash() -> str:
    """Of the modules that make the network and convert it: a change there makes another model of the same weights."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).resolve().parent.parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def prune() -> None:
    """Keeps the conversions that were used last, and removes what a killed process left half done."""
    entries = [path for path in cache_directory().iterdir() if path.is_dir()]
    whole = [path for path in entries if not path.name.endswith(".partial")]
    whole.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in whole[_KEPT:]:
        shutil.rmtree(path, ignore_errors=True)
