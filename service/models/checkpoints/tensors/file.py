"""Reads one file of tensors; the network follows from their shapes."""

from __future__ import annotations

import logging
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from service.errors import CheckpointError
from service.models.cache import file_sha256
from service.models.catalog import VARIANTS
from service.models.checkpoints.binary import with_both_classes
from service.models.checkpoints.checkpoint import Activation, Checkpoint
from service.models.checkpoints.classes import classes_beside
from service.models.checkpoints.pixels import with_pixels
from service.models.checkpoints.tensors.files import read_values
from service.models.checkpoints.tensors.normalising import Normalising
from service.models.checkpoints.tensors.state_dict import read_network
from service.models.configuration import Configuration, VGGConfig
from service.models.options import Options
from service.preprocess import Preprocessing

_log = logging.getLogger(__name__)

#: torchvision's ``VGG16_Weights.IMAGENET1K_FEATURES``, in which the classifier's values are missing.
_WITHOUT_A_HEAD = "vgg16_features-amdegroot-"


#: Ratio of the resized short side to the crop in torchvision's presets.
_MARGIN = 256 / 224

#: How transformers and Accelerate number the parts of a large checkpoint.
_PART = re.compile(r"-\d{5}-of-(\d{5})")

_OPTIONS = (
    "preprocessing", "classifier_activation", "image_size", "pooling", "head_activation", "key", "head",
)  # fmt: skip


def read(path: Path, model: str | None, options: Options) -> Checkpoint:
    """Reads a file of tensors, with torchvision's preprocessing unless ``options`` say otherwise.

    Raises `CheckpointError` for a file that is no VGG or DenseNet, or that is a variant other than ``model``.
    """
    if path.name.startswith(_WITHOUT_A_HEAD):
        raise CheckpointError(f"'{path.name}' holds no values for its classifier; set weights to pretrained")
    if part := _PART.search(path.stem):
        raise CheckpointError(
            f"'{path.name}' is one of {int(part[1])} parts of a checkpoint; give the folder that all of them are in"
        )
    checkpoint = of_values(read_values(path), path.name, model, options)
    return replace(checkpoint, name=path.stem, source=f"file {path.name}", sha256=file_sha256(path))


def of_values(values: Any, name: str, model: str | None, options: Options, beside: Any = None) -> Checkpoint:
    """Makes a checkpoint from the values of a file, or of all files of a folder. ``beside`` may hold class names,
    too.

    Raises `CheckpointError`.
    """
    options = options.only(*_OPTIONS)
    network = read_network(values, name, options)
    configuration = network.configuration
    _refuse_another_variant(configuration, model, name)
    classes = configuration.num_classes
    checkpoint = with_pixels(
        Checkpoint(
            configuration=configuration,
            state_dict=network.state_dict,
            preprocessing=_preprocessing(options, network.normalising),
            classes=classes_beside([values, beside], classes, name) if classes else None,
            activation=_activation(classes, options.classifier_activation),
            name=name,
            source="",
            sha256=None,
        ),
        options.preprocessing,
    )
    return with_both_classes(checkpoint)


def _preprocessing(options: Options, normalising: Normalising | None) -> Preprocessing:
    usual = Preprocessing()
    if normalising is not None:
        usual = replace(usual, mean=normalising[0], std=normalising[1])
    if options.image_size is None:
        return usual
    return replace(usual, resize=round(min(options.image_size) * _MARGIN), crop=options.image_size)


def _activation(classes: int, wanted: str | None) -> Activation:
    if wanted is not None:
        return "sigmoid" if wanted == "sigmoid" else "softmax"
    # A softmax over one value is always 1.
    return "sigmoid" if classes == 1 else "softmax"


def _refuse_another_variant(configuration: Configuration, model: str | None, name: str) -> None:
    """Refuses a variant under the name of another one, which is a slip; any other network only gets a warning.

    Without a ``model`` nothing is refused.
    """
    if model is None:
        return
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
    """Returns the configuration with a default head and 3 channels, to compare backbones only."""
    plain = replace(configuration, num_classes=0, channels=3, layers=())
    if isinstance(plain, VGGConfig):
        return replace(plain, hidden=4096, hidden_first=None, head="adaptive", head_pooling="avg")
    return replace(plain, head_pooling="avg")


def _difference(found: Configuration, wanted: Configuration) -> str:
    if found.family != wanted.family:
        return f"a {found.family} and not a {wanted.family}"
    differing = (
        field.name for field in fields(found) if getattr(found, field.name) != getattr(wanted, field.name)
    )
    return ", ".join(f"{name} {getattr(found, name)} for {getattr(wanted, name)}" for name in differing)
