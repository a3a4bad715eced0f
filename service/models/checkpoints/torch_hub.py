"""torchvision's published weights, from torch.hub's cache.

The files lie where ``torch.hub`` keeps them, ``$TORCH_HOME/hub/checkpoints`` (``~/.cache/torch`` by default), so an
image or a volume can be filled beforehand, and a download of another program is used.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from service.errors import CheckpointError
from service.labels import imagenet_classes
from service.models.cache import file_sha256
from service.models.catalog import VARIANTS, Variant
from service.models.checkpoints.checkpoint import Checkpoint
from service.models.checkpoints.download import DownloadError, Progress, fetch
from service.models.checkpoints.partial import sweep
from service.models.checkpoints.places import BAKED, published
from service.models.checkpoints.tensors.files import read_values
from service.models.checkpoints.tensors.state_dict import read_network
from service.models.options import Options
from service.preprocess import Preprocessing

_log = logging.getLogger(__name__)

_WAYS_OUT = (
    "put the file there beforehand (the folder follows TORCH_HOME), "
    "or start with --weights PATH, --weights demo or --weights random"
)


def pretrained(model: str, progress: Progress | None = None) -> Checkpoint:
    """Reads torchvision's ``IMAGENET1K_V1`` weights for one of the twelve variants, downloaded unless they are
    cached.

    The hash in the file's name is compared with the bytes each time, since a cache may be damaged. Raises
    `CheckpointError` if the file cannot be had.
    """
    variant = VARIANTS[model]
    path, sha256 = _cached_or_fetched(variant, progress)
    return Checkpoint(
        configuration=variant.configuration,
        state_dict=read_network(read_values(path), path.name, Options()).state_dict,
        preprocessing=Preprocessing(),
        classes=imagenet_classes(),
        activation="softmax",
        name=variant.weights_name,
        source=f"torchvision {variant.weights_file}",
        sha256=sha256,
    )


def cached(variant: Variant) -> tuple[Path, str] | None:
    """Returns torchvision's file on this host and its SHA-256; None if it is absent or incomplete. Changes nothing.

    A damaged file in torch.hub's cache does not count; a file that the image was built with is trusted.
    """
    path = published(variant)
    if path.is_file() and (sha256 := file_sha256(path)).startswith(path.stem.rpartition("-")[2]):
        return path, sha256
    baked = Path(os.environ.get(BAKED, "")) / path.name
    return (baked, file_sha256(baked)) if BAKED in os.environ and baked.is_file() else None


def _cached_or_fetched(variant: Variant, progress: Progress | None) -> tuple[Path, str]:
    path = published(variant)
    sweep(path.parent)
    if (found := cached(variant)) is not None:
        return found
    if path.is_file():
        _log.warning("the cached %s is damaged; fetching it again", path.name)
    prefix = path.stem.rpartition("-")[2]
    try:
        return path, fetch(url(variant), path, sha256_prefix=prefix, progress=progress)
    except DownloadError as error:
        raise CheckpointError(
            f"{path.name} is not in torch hub's cache and cannot be downloaded: {error}; {_WAYS_OUT}"
        ) from error


def url(variant: Variant) -> str:
    """Returns torchvision's URL of the file."""
    # Imported here: torchvision takes longer to import than torch, and only a download needs it.
    from service.models.torchvision_import import torchvision

    address: str = torchvision.models.get_model_weights(variant.name)[variant.weights_name].url
    return address
