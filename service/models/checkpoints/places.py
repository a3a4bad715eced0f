"""Finds the files of some weights without reading them: no torch.

`locator` finds the files that `service.models.checkpoints` would find when it reads the checkpoint.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path

from service.errors import CheckpointError
from service.models.catalog import DEFAULT, VARIANTS, Variant
from service.models.checkpoints import huggingface, kaggle
from service.models.checkpoints.download import Progress
from service.models.checkpoints.folder import Folder, local
from service.models.checkpoints.label_files import read_labels
from service.models.checkpoints.tensors import recognise
from service.models.options import parse

#: The small model that ships with the service.
DEMO = Path(__file__).resolve().parent.parent / "demo"

#: Environment variable: the folder of weights that an image was built with. It is not torch.hub's own folder, over
#: which a volume may be mounted.
BAKED = "BAKED_WEIGHTS"

Locate = Callable[[str], Path | None]


def published(variant: Variant) -> Path:
    """Returns where torch.hub keeps torchvision's file, whether it exists or not (``torch.hub.get_dir``)."""
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints" / variant.weights_file


def published_or_baked(variant: Variant) -> Path:
    """Returns that path, or the path in the image that this process runs in if only that exists."""
    path = published(variant)
    baked = Path(os.environ.get(BAKED, "")) / path.name
    return baked if BAKED in os.environ and baked.is_file() and not path.is_file() else path


def locator(weights: str, model: str | None, progress: Progress | None = None) -> Locate:
    """Returns a function from a file's name to its path, or None if the weights have no such file.

    May ask a hub, as reading the weights would. Raises `CheckpointError`.
    """
    if weights == "pretrained":
        return _among(published_or_baked(VARIANTS[model or DEFAULT]))
    if weights == "demo":
        return local(DEMO).find
    source, _ = parse(weights)
    if huggingface.file_in(source):
        path = huggingface.fetch_file(source, progress)
        return lambda name: path if name == path.name else None
    if (repository := hub_folder(source, progress)) is not None:
        return repository.find
    path = Path(source).expanduser()
    return local(path).find if path.is_dir() else _among(path)


def hub_folder(source: str, progress: Progress | None, *, cached_only: bool = False) -> Folder | None:
    """Returns the files of a repository that ``source`` names on a hub; None if it names none.

    Raises `CheckpointError`, and with ``cached_only`` `NotCached`.
    """
    if source.startswith(huggingface.SCHEME):
        return huggingface.open_repository(source, progress, cached_only=cached_only)
    if source.startswith(kaggle.SCHEME) or source in kaggle.BUILT_IN:
        return kaggle.open_model(kaggle.BUILT_IN.get(source, source), progress, cached_only=cached_only)
    return None


def ask(weights: str) -> str:
    """Asks a hub whether a start could download ``weights``, downloads nothing, and returns the hub's URL.

    ``weights`` is an ``hf://`` or ``kaggle://`` address or a KerasHub name. Raises `CheckpointError` if a start could
    not.
    """
    source, _ = parse(weights)
    if source.startswith(huggingface.SCHEME):
        return huggingface.check(source)
    return kaggle.check(kaggle.BUILT_IN.get(source, source))


def _among(path: Path) -> Locate:
    return lambda name: path if name == path.name and path.is_file() else None


_ACCEPTED = (
    "pretrained, random, random:SEED, demo, a file (.pth, .safetensors, .keras, .weights.h5), a checkpoint "
    "directory, hf://owner/repo, kaggle://owner/model/framework/variation, or a name of KerasHub's such "
    "as vgg_16_imagenet"
)


def check(weights: str, labels: Path | None = None) -> None:
    """Checks the words themselves: an option, an address, a path, a file of another kind.

    Nothing is downloaded and nothing large is read. Raises `CheckpointError`.
    """
    if labels is not None:
        read_labels(labels)
    if weights in ("pretrained", "demo"):
        return
    source, _ = parse(weights)
    if source == "random" or source.startswith("random:"):
        seed_and_configuration(source)
        return
    for scheme, room in ((huggingface.SCHEME, huggingface), (kaggle.SCHEME, kaggle)):
        if source.startswith(scheme):
            room.parse(source)
            return
    path = Path(source).expanduser()
    if source and path.is_file():
        recognise.kind(path)
    elif source not in kaggle.BUILT_IN and not (source and path.exists()):
        raise unknown(weights)


def unknown(weights: str) -> CheckpointError:
    """Returns the error for a word that names no weights, with a similar word that may have been meant."""
    words = ["pretrained", "random", "demo", *kaggle.BUILT_IN]
    close = difflib.get_close_matches(weights, words, n=1, cutoff=0.75)
    meant = f" (did you mean {close[0]}?)" if close else ""
    if weights in VARIANTS:
        meant = f" ({weights} is a model: --model {weights})"
    return CheckpointError(f"there are no weights '{weights}'{meant}: give {_ACCEPTED}")


def seed_and_configuration(weights: str) -> tuple[int, Path | None]:
    """Parses ``random[:SEED][:CONFIGURATION]``. Raises `CheckpointError` for another form or a path that does not
    exist."""
    first, _, rest = weights.removeprefix("random").removeprefix(":").partition(":")
    digits = first.isascii() and first.isdecimal()
    if weights == "random":
        first, digits = "0", True
    if digits and int(first) < 2**64 and not (weights.count(":") > 1 and not rest):
        path = Path(rest).expanduser() if rest else None
    else:
        path, first = Path(weights.removeprefix("random:")).expanduser(), "0"
        if weights in ("random", "random:") or not path.exists():
            raise CheckpointError(
                f"'{weights}' has no seed and no configuration; write random:SEED with a whole number from 0 on, "
                "random:CONFIGURATION with a directory or a config.json, or random:SEED:CONFIGURATION"
            )
    if path is not None and not path.exists():
        raise CheckpointError(f"there is no configuration '{path.name}'; give a directory or a config.json")
    return int(first), path
