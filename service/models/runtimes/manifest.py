"""A directory with a prepared model, and its ``about.json``: the model's origin and the hash of each file.

about.json    {"format", "version", "precision", "fingerprint", "model": {"weights", "sha256", "architecture"},
               "image": [H, W, C], "libraries": {name: version}, "files": {file: sha256}, and the kind's own}
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.errors import ConfigurationError
from service.models.cache import file_sha256
from service.models.checkpoints.partial import locked, sweep
from service.models.configuration import to_json

if TYPE_CHECKING:
    from service.models.checkpoints import Checkpoint

_ABOUT = "about.json"
#: Seconds between making a folder and locking it, with room to spare: an older folder without a lock is abandoned.
_ABANDONED = 60.0
#: Pattern of such a folder's name before its suffix: an artifact may be written beside other files.
_STEM = f"*.{'[0-9a-f]' * 32}"


@dataclass(frozen=True)
class ArtifactKind:
    """A kind of artifact: its ``format``, its ``version``, and the command that makes it (``imagenet-serve
    COMMAND``)."""

    format: str
    version: int
    command: str


#: The kind that `imagenet-serve quantize` and `export --runtime openvino` make, and that the cache holds
#: (artifact.py).
OPENVINO = ArtifactKind("imagenet-serve-openvino", 2, "quantize")
#: The kind that `imagenet-serve export` makes (package.py).
PACKAGE = ArtifactKind("imagenet-serve-package", 1, "export")


def fingerprint(checkpoint: Checkpoint) -> str:
    """Returns a SHA-256 over everything that decides a model's answers: weights, architecture, normalising, image
    size."""
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
    digest = hashlib.sha256()
    for key, tensor in sorted(checkpoint.state_dict.items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def libraries(*names: str) -> dict[str, str]:
    """Returns the installed versions of these distributions; empty for one that is not installed."""
    return {name: _version(name) for name in names}


@cache
def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


@cache
def code_hash() -> str:
    """Returns a hash of the code that makes and prepares networks: a change there makes another model of the same
    weights."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).resolve().parent.parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def write(
    kind: ArtifactKind,
    directory: Path,
    save: Callable[[Path], Sequence[str]],
    checkpoint: Checkpoint,
    precision: str,
    **more: Any,
) -> None:
    """Writes the directory, completely or not at all. Replaces an existing one.

    ``save`` writes files into the folder that it is given and returns their names; ``more`` goes into ``about.json``.
    Raises `OSError`.
    """
    partial = directory.with_name(f"{directory.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir(parents=True)
    try:
        with locked(partial):
            sweep(partial.parent, _ABANDONED, _STEM)
            names = save(partial)
            about = {
                "format": kind.format,
                "version": kind.version,
                "precision": precision,
                "fingerprint": fingerprint(checkpoint),
                "model": {
                    "weights": checkpoint.name,
                    "sha256": checkpoint.sha256,
                    "architecture": to_json(checkpoint.configuration),
                },
                "image": checkpoint.preprocessing.shape,
                "files": {name: file_sha256(partial / name) for name in names},
                **more,
            }
            (partial / _ABOUT).write_text(json.dumps(about, indent=1) + "\n", "utf-8")
        _take_place(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _take_place(partial: Path, directory: Path) -> None:
    """Moves the new directory into place. A non-empty one cannot be renamed over, so an old one moves aside first."""
    if directory.exists():
        old = directory.with_name(f"{directory.name}.{uuid.uuid4().hex}.partial")
        directory.rename(old)
        shutil.rmtree(old, ignore_errors=True)
    partial.rename(directory)


def format_of(directory: Path) -> str | None:
    """Returns the format that the directory's ``about.json`` names; None without one."""
    try:
        return str(json.loads((directory / _ABOUT).read_text("utf-8"))["format"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read(kind: ArtifactKind, directory: Path) -> Mapping[str, Any]:
    """Reads ``about.json`` and checks every file. Raises `ConfigurationError` for another kind or damage."""
    try:
        about: dict[str, Any] = json.loads((directory / _ABOUT).read_text("utf-8"))
        if about["format"] != kind.format or about["version"] != kind.version:
            raise ConfigurationError(
                f"'{directory.name}' is an artifact of another version; make it again with: "
                f"imagenet-serve {kind.command}"
            )
        for name, sha256 in about["files"].items():
            if file_sha256(directory / name) != sha256:
                raise ConfigurationError(f"'{directory.name}/{name}' is damaged; make the artifact again")
        return about
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise unreadable(kind, directory, error) from error


def unreadable(kind: ArtifactKind, directory: Path, error: Exception) -> ConfigurationError:
    """Returns the error for a directory that holds something else."""
    return ConfigurationError(
        f"runtime: '{directory.name}' is no artifact that can be read ({type(error).__name__}); make one "
        f"with: imagenet-serve {kind.command}"
    )


def refuse_another(about: Mapping[str, Any], checkpoint: Checkpoint, name: str, kind: ArtifactKind) -> None:
    """Raises `ConfigurationError` unless the artifact was made from this checkpoint."""
    if about.get("fingerprint") != fingerprint(checkpoint):
        model = about.get("model", {})
        raise ConfigurationError(
            f"the artifact '{name}' was made from the weights {model.get('weights')!r} "
            f"(sha256 {str(model.get('sha256'))[:12]}), and these are {checkpoint.name!r} "
            f"(sha256 {str(checkpoint.sha256)[:12]}): give those to --weights, or {kind.command} these"
        )
