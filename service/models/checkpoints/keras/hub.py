"""Reads KerasHub preset directories: VGG and DenseNet, with any head that KerasHub gives them.

    config.json          the backbone's class and arguments
    model.weights.h5     its weights; a large one in shards that model.weights.json lists
    task.json            the classifier: pooling, activation, classes, and the preprocessor within
    task.weights.h5      the head (before KerasHub 0.30 a copy of the backbone too, which is ignored)
    preprocessor.json, image_converter.json    read only if task.json does not hold them

KerasHub gives a preset without a head a random one; here such a preset has features only.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from service.errors import CheckpointError
from service.labels import default_classes
from service.models.cache import file_sha256
from service.models.checkpoints.checkpoint import Checkpoint
from service.models.checkpoints.folder import Folder
from service.models.checkpoints.keras import layers as keras_layers
from service.models.checkpoints.keras.body import EPSILON
from service.models.checkpoints.keras.hdf5 import Array, read_arrays
from service.models.checkpoints.keras.hub_heads import activation_name, read_head
from service.models.checkpoints.keras.hub_image import image_converter
from service.models.configuration import Configuration, DenseNetConfig, VGGConfig

_log = logging.getLogger(__name__)


def read(folder: Folder, document: dict[str, Any], *, legacy_head: bool = False) -> Checkpoint:
    """Reads a preset whose ``config.json`` is ``document``. Raises `CheckpointError`.

    ``legacy_head`` gives a VGG the head's arithmetic of KerasHub before 0.27. The files do not tell which one they
    were trained with; those that KerasHub publishes were made for the newer one.
    """
    configuration, image_size = _configuration(folder, document)
    arrays, sha256 = _backbone_arrays(folder)
    convolutions = keras_layers.layers(arrays, "conv2d")
    norms = keras_layers.layers(arrays, "batch_normalization")
    state_dict = keras_layers.of_layers(convolutions, norms, configuration, folder.name)
    task = _task(folder, configuration)
    if task is not None:
        configuration, tensors = read_head(folder, configuration, task, legacy_head=legacy_head)
        state_dict |= tensors
    return Checkpoint(
        configuration=configuration,
        state_dict=state_dict,
        preprocessing=image_converter(folder, task, configuration, image_size),
        classes=None if task is None else default_classes(configuration.num_classes),
        activation="softmax" if task is None else keras_layers.scores(activation_name(task)),
        name=folder.name,
        source=f"KerasHub preset, {folder.source}",
        sha256=sha256,
    )


def described(folder: Folder, document: dict[str, Any]) -> Configuration:
    """Returns the network of a preset without its weights, with the head of task.json if that file exists.

    Raises `CheckpointError`.
    """
    configuration, size = _configuration(folder, document)
    task = (folder.json("task.json") or {}).get("config")
    if not isinstance(task, dict):
        return configuration
    classes, pooling = int(task["num_classes"]), str(task.get("pooling", "avg"))
    if isinstance(configuration, DenseNetConfig):
        return replace(configuration, num_classes=classes, head_pooling=pooling)  # type: ignore[arg-type]
    shared: dict[str, Any] = {"num_classes": classes, "hidden": int(task.get("pooling_hidden_dim", 4096))}
    if pooling == "flatten":
        return replace(configuration, head="flatten", image_size=size, **shared)
    return replace(configuration, head="valid", head_pooling=pooling, **shared)  # type: ignore[arg-type]


def _configuration(folder: Folder, document: dict[str, Any]) -> tuple[Configuration, tuple[int, int] | None]:
    """Returns the backbone without a head, and its fixed image size (height, width) or None."""
    kind = str(document.get("registered_name")).rpartition(">")[2]
    settings = document.get("config")
    try:
        if not isinstance(settings, dict):
            raise TypeError("no config")
        height, width, channels = settings.get("image_shape", (None, None, 3))
        repeats = [int(count) for count in settings["stackwise_num_repeats"]]
        size = None if height is None or width is None else (int(height), int(width))
        if kind == "VGGBackbone":
            filters = [int(count) for count in settings["stackwise_num_filters"]]
            shared: dict[str, Any] = {"num_classes": 0, "channels": int(channels), "image_size": size}
            return VGGConfig.from_stackwise(repeats, filters, **shared), size
        if kind == "DenseNetBackbone":
            return _densenet(settings, repeats, int(channels)), size
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"config.json of '{folder.name}' does not describe its backbone; write it anew"
        ) from error
    raise CheckpointError(f"'{folder.name}' is a {kind}; only VGGBackbone and DenseNetBackbone can be served")


def _densenet(settings: dict[str, Any], repeats: list[int], channels: int) -> DenseNetConfig:
    return DenseNetConfig(
        blocks=tuple(repeats),
        growth_rate=int(settings.get("growth_rate", 32)),
        compression=float(settings.get("compression_ratio", 0.5)),
        channels=channels,
        num_classes=0,
        padding="same",
        epsilon=EPSILON,
    )


def _backbone_arrays(folder: Folder) -> tuple[dict[str, Array], str]:
    whole = folder.find("model.weights.h5")
    if whole is not None:
        return _layer_arrays(whole), file_sha256(whole)
    index = folder.json("model.weights.json")
    if index is None:
        raise CheckpointError(f"'{folder.name}' lacks its file model.weights.h5; fetch the checkpoint again")
    arrays: dict[str, Array] = {}
    for name in _shards(index, folder.name):
        # A layer may be split over two shards, so only their union is complete.
        arrays |= _layer_arrays(folder.need(name))
    return arrays, file_sha256(folder.need("model.weights.json"))


def _layer_arrays(path: Path) -> dict[str, Array]:
    return read_arrays(path, path.name, keras_layers.is_weight)


def _shards(index: dict[str, Any], name: str) -> list[str]:
    mapping = index.get("weight_map")
    if not isinstance(mapping, dict):
        raise CheckpointError(f"model.weights.json of '{name}' has no weight_map; fetch it again")
    files = {file for entry in mapping.values() for file in (entry if isinstance(entry, list) else [entry])}
    if not all(isinstance(file, str) and file.endswith(".h5") for file in files):
        raise CheckpointError(f"model.weights.json of '{name}' names a shard that is no .h5 file")
    return sorted(files)


def _task(folder: Folder, configuration: Configuration) -> dict[str, Any] | None:
    """Returns the classifier's settings; None for a preset without a classification head."""
    document = folder.json("task.json")
    wanted = "VGGImageClassifier" if isinstance(configuration, VGGConfig) else "DenseNetImageClassifier"
    if document is None or folder.find("task.weights.h5") is None:
        _log.warning("%s has no task.json and task.weights.h5: it serves features only", folder.name)
        return None
    if str(document.get("registered_name")).rpartition(">")[2] != wanted:
        raise CheckpointError(f"task.json of '{folder.name}' is no {wanted}; only classifiers can be served")
    settings = document.get("config")
    if not isinstance(settings, dict) or not isinstance(settings.get("num_classes"), int):
        raise CheckpointError(f"task.json of '{folder.name}' does not describe a classifier; write it anew")
    return settings
