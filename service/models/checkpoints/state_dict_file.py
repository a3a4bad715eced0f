"""One file of tensors and nothing else: what network it is follows from their shapes."""

from __future__ import annotations

import logging
from dataclasses import fields, replace
from pathlib import Path

from service.errors import CheckpointError
from service.labels import default_classes
from service.models.cache import file_sha256
from service.models.catalog import VARIANTS
from service.models.checkpoints.checkpoint import Checkpoint
from service.models.checkpoints.files import read_state_dict
from service.models.checkpoints.shapes import infer
from service.models.configuration import Configuration
from service.preprocess import Preprocessing

_log = logging.getLogger(__name__)

#: torchvision's ``VGG16_Weights.IMAGENET1K_FEATURES``: the classifier's values are missing in it.
_WITHOUT_A_HEAD = "vgg16_features-amdegroot-"


def read(path: Path, model: str) -> Checkpoint:
    """The checkpoint of a ``.pth`` or ``.safetensors`` file, with torchvision's preprocessing.

    Raises `CheckpointError` for a file that is no VGG or DenseNet, or is one of the twelve and not ``model``.
    """
    if path.name.startswith(_WITHOUT_A_HEAD):
        raise CheckpointError(f"'{path.name}' holds no values for its classifier; set weights to pretrained")
    configuration, state_dict = infer(read_state_dict(path), path.name)
    _refuse_another_variant(configuration, model, path.name)
    return Checkpoint(
        configuration=configuration,
        state_dict=state_dict,
        preprocessing=Preprocessing(),
        classes=default_classes(configuration.num_classes) if configuration.num_classes else None,
        activation="softmax",
        name=path.stem,
        source=f"file {path.name}",
        sha256=file_sha256(path),
    )


def _refuse_another_variant(configuration: Configuration, model: str, name: str) -> None:
    """One variant under the name of another is a slip; a network that is none of the twelve is a choice."""
    wanted, found = _body(VARIANTS[model].configuration), _body(configuration)
    if found == wanted:
        return
    for variant in VARIANTS.values():
        if found == _body(variant.configuration):
            raise CheckpointError(
                f"'{name}' holds a {variant.name}, and model is {model}; set model to {variant.name}"
            )
    _log.warning("%s is no %s but a network of its own: %s", name, model, _difference(found, wanted))


def _body(configuration: Configuration) -> Configuration:
    """Without what a fine-tuned network may have of its own."""
    return replace(configuration, num_classes=1000, channels=3)


def _difference(found: Configuration, wanted: Configuration) -> str:
    if found.family != wanted.family:
        return f"a {found.family} and not a {wanted.family}"
    differing = (
        field.name for field in fields(found) if getattr(found, field.name) != getattr(wanted, field.name)
    )
    return ", ".join(f"{name} {getattr(found, name)} for {getattr(wanted, name)}" for name in differing)
