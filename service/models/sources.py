"""Finds the converted model of some weights again, without reading the weights and without torch.

    sources/<digest>.json     {"files": {name: sha256 | null}, "fingerprint", "card"}

The digest is over the settings' name of the weights, the versions of the libraries that read them, and this project's
code. ``files`` are those that a reading looked for. While each holds the same bytes, another reading would give the
same model.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from service.models import cache
from service.models.cache import file_sha256
from service.models.checkpoints import Checkpoint, Progress, places
from service.models.runtimes import manifest
from service.observability.card import ModelCard

log = logging.getLogger(__name__)

_LIBRARIES = ("torch", "torchvision", "safetensors", "h5py", "numpy")


@dataclass(frozen=True)
class KnownSource:
    """A known source of weights: ``fingerprint`` is from `manifest.fingerprint`, ``card`` describes the weights."""

    fingerprint: str
    card: ModelCard


def find(weights: str, model: str | None, progress: Progress | None = None) -> KnownSource | None:
    """Returns what an earlier start noted about these weights; None if nothing was noted or the files have changed.

    May ask a hub, as reading the weights would. Raises `CheckpointError`.
    """
    try:
        document = json.loads(_place(weights, model).read_text("utf-8"))
        files = dict(document["files"])
        source = KnownSource(str(document["fingerprint"]), ModelCard.from_json(document["card"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    locate = places.locator(weights, model, progress)
    try:
        same = all(_sha256(locate(name)) == sha256 for name, sha256 in files.items())
    except OSError:
        return None
    return source if same else None


def remember(weights: str, model: str | None, checkpoint: Checkpoint, card: ModelCard) -> KnownSource:
    """Notes the result of reading these weights. An unwritable cache is ignored."""
    source = KnownSource(manifest.fingerprint(checkpoint), card)
    try:
        files = {name: _sha256(path) for name, path in checkpoint.files.items()}
        document = {"files": files, "fingerprint": source.fingerprint, "card": card.to_json()}
        cache.write(_place(weights, model), document)
    except OSError as error:
        log.debug("%s: what belongs to it is not remembered: %s", weights, error)
    return source


def _place(weights: str, model: str | None) -> Path:
    key: Mapping[str, object] = {
        "weights": weights,
        "folder": str(Path.cwd()),  # the weights may be a relative path
        "model": model,
        "libraries": manifest.libraries(*_LIBRARIES),
        "code": manifest.code_hash(),
    }
    return cache.root() / "sources" / f"{cache.digest(key)}.json"


def _sha256(path: Path | None) -> str | None:
    return None if path is None else file_sha256(path)
