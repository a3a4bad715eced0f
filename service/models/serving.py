"""Loads a model by the settings. The engine and `classify` start here.

converted before   sources.py ─▶ runtimes/artifact.py ─▶ runtimes/openvino.py      no torch, a second
anything else      building.py: checkpoints/ ─▶ loader.py ─▶ a runtime             with torch
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from service.errors import ConfigurationError
from service.models import cache, sources
from service.models.catalog import VARIANTS
from service.models.checkpoints import Progress
from service.models.loaded import Loaded, Report, openvino
from service.models.placement import Placement, place
from service.models.runtimes import artifact
from service.settings import Settings

log = logging.getLogger(__name__)

#: Environment variable: the folder of the converted model that the image was built with (Dockerfile, WEIGHTS).
_BAKED = "BAKED_MODEL"


def load(
    settings: Settings, report: Report, progress: Progress | None = None, given_up: Sequence[str] = ()
) -> Loaded:
    """Loads the settings' model onto its device. Raises `StartError` with one sentence if that is impossible.

    On CUDA, each reason in ``given_up`` leaves out one way to run the model: an earlier start failed with it.
    """
    of = f" of {settings.model}" if settings.named_model or settings.weights == "pretrained" else ""
    report("loading", f"weights {settings.weights}{of}")
    placement = place(settings.device, settings.precision, settings.runtime)
    found = _prepared(settings, placement, progress)
    if found is not None:
        return found
    refuse_without_torch(settings.weights)
    # This imports torch, which takes a second and some 200 MB.
    from service.models import building

    return building.load(settings, placement, report, progress, given_up)


def wants_preparing(settings: Settings, progress: Progress | None = None) -> bool:
    """Returns True if a start with these settings first converts a model into a writable cache."""
    placement = place(settings.device, settings.precision, settings.runtime)
    if placement.runtime != "openvino" or converted_weights(settings.weights, settings.model) is not None:
        return False
    source = sources.find(settings.weights, settings.named_model, progress)
    is_known = source is not None and (
        placement.artifact is not None or artifact.cached(source.fingerprint, placement.precision).is_dir()
    )
    return not is_known and cache.is_writable()


def _prepared(settings: Settings, placement: Placement, progress: Progress | None) -> Loaded | None:
    """Returns the model as an earlier start or command converted it; None if it must be converted first."""
    path = converted_weights(settings.weights, settings.model)
    if path is not None:
        return _of_directory(path, settings, placement)
    if placement.runtime != "openvino":
        return None
    source = sources.find(settings.weights, settings.named_model, progress)
    if source is None:
        return None
    if placement.artifact is not None:
        found = artifact.read(placement.artifact)
        if found.fingerprint != source.fingerprint:
            return None  # building.load reads the weights and says what is wrong with the artifact
    else:
        kept = artifact.from_cache(artifact.cached(source.fingerprint, placement.precision))
        if kept is None:
            return None
        found = kept
    return openvino(found.open(), source.card, settings, placement)


def converted_weights(weights: str, model: str) -> Path | None:
    """Returns the folder of the converted model that the weights name, or that the image was built with; else None."""
    path = Path(weights).expanduser()
    if artifact.is_one(path):
        return path
    baked = _baked()
    if weights != "pretrained" or baked is None:
        return None
    card = artifact.read(baked).open().card
    return baked if (card.name, card.weights) == (model, VARIANTS[model].weights_name) else None


def _baked() -> Path | None:
    """Returns the folder of the converted model that this image was built with; None without one."""
    path = Path(os.environ.get(_BAKED, ""))
    return path if _BAKED in os.environ and artifact.is_one(path) else None


def refuse_without_torch(weights: str) -> None:
    """Raises `ConfigurationError` if torch, which reads the weights, is not installed."""
    if find_spec("torch") is None:
        baked = _baked()
        own = f"what this image was built with (weights={baked}), " if baked is not None else ""
        raise ConfigurationError(
            f"weights={weights}: torch has to read and convert them, and this installation has none: serve {own}what "
            "`imagenet-serve export DIRECTORY --runtime openvino` has made, or an image that was built with this model"
        )


def _of_directory(path: Path, settings: Settings, placement: Placement) -> Loaded:
    """Loads weights that are a converted model themselves."""
    if placement.runtime != "openvino" or placement.artifact not in (None, path):
        raise ConfigurationError(
            f"'{path.name}' is a model converted for OpenVINO on the CPU; leave device, runtime and precision to auto"
        )
    converted = artifact.read(path).open()
    return openvino(converted, converted.card, settings, placement)


__all__ = ["Loaded", "Report", "load"]
