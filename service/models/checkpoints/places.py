"""Where the files of some weights lie, without reading them: no torch.

`locator` answers as the origins' own code does when it reads a checkpoint (`service.models.checkpoints`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from service.models.catalog import VARIANTS, Variant
from service.models.checkpoints import huggingface, kaggle
from service.models.checkpoints.download import Progress
from service.models.checkpoints.folder import local
from service.models.options import parse

#: The small model that comes along.
DEMO = Path(__file__).resolve().parent.parent / "demo"

#: The folder of weights that an image was built with. Not in torch.hub's own, over which a volume may be mounted.
BAKED = "BAKED_WEIGHTS"

Locate = Callable[[str], Path | None]


def published(variant: Variant) -> Path:
    """Where torch.hub keeps torchvision's file, whether it is there or not (``torch.hub.get_dir``)."""
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints" / variant.weights_file


def published_or_baked(variant: Variant) -> Path:
    """That, or where the image that this runs in has the file."""
    path = published(variant)
    baked = Path(os.environ.get(BAKED, "")) / path.name
    return baked if BAKED in os.environ and baked.is_file() and not path.is_file() else path


def locator(weights: str, model: str, progress: Progress | None = None) -> Locate:
    """From the name of a file to its path, None where the weights have no such file.

    May ask a hub, as reading the weights would. Raises `CheckpointError`.
    """
    if weights == "pretrained":
        return _among(published_or_baked(VARIANTS[model]))
    if weights == "demo":
        return local(DEMO).find
    source, _ = parse(weights)
    if source.startswith(huggingface.SCHEME):
        return huggingface.open_repository(source, progress).find
    if source.startswith(kaggle.SCHEME) or source in kaggle.BUILT_IN:
        return kaggle.open_model(kaggle.BUILT_IN.get(source, source), progress).find
    path = Path(source).expanduser()
    return local(path).find if path.is_dir() else _among(path)


def ask(weights: str) -> str:
    """Asks the hub of an ``hf://`` or ``kaggle://`` address, or of a name of KerasHub's, whether a start could fetch
    it. Fetches nothing, and returns who was asked. Raises `CheckpointError` where a start could not.
    """
    source, _ = parse(weights)
    if source.startswith(huggingface.SCHEME):
        return huggingface.check(source)
    return kaggle.check(kaggle.BUILT_IN.get(source, source))


def _among(path: Path) -> Locate:
    return lambda name: path if name == path.name and path.is_file() else None
