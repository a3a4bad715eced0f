"""Reads classification heads of KerasHub presets by the layers that ``task.weights.h5`` holds.

Below ``layers/sequential/layers/`` of a VGG lie, whatever widths task.json states:

    conv2d, conv2d_1, dense                                      pooling avg or max
    dense, dense_1, dense_2                                      pooling flatten, since 0.27
    conv2d, conv2d_1, sequential/layers/dense, dense_1, dense    pooling flatten, before 0.27
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from typing import Any, get_args

from torch import Tensor

from service.errors import CheckpointError
from service.models.checkpoints.folder import Folder
from service.models.checkpoints.keras import layers as keras_layers
from service.models.checkpoints.keras.hdf5 import Array, read_arrays
from service.models.checkpoints.keras.layers import Layer, convolution, dense
from service.models.configuration import Configuration, DenseNetConfig, VGGConfig
from service.models.head import Pooling

_log = logging.getLogger(__name__)

_VGG = "layers/sequential/layers/"

#: The first version whose VGG head is a valid convolution with ReLU, as in timm, from where the weights come.
_NEW_HEAD = (0, 27)


def read_head(
    folder: Folder, configuration: Configuration, task: dict[str, Any], *, legacy_head: bool
) -> tuple[Configuration, dict[str, Tensor]]:
    """Returns the configuration with its head, and the head's tensors. Raises `CheckpointError`."""
    wanted = _VGG if isinstance(configuration, VGGConfig) else "layers/dense/"
    path = folder.need("task.weights.h5")
    arrays = read_arrays(
        path, path.name, lambda name: name.startswith(wanted) and keras_layers.is_weight(name)
    )
    complete, tensors = (
        _vgg(folder, configuration, task, arrays, legacy_head)
        if isinstance(configuration, VGGConfig)
        else _densenet(folder, configuration, task, arrays)
    )
    if complete.num_classes != task["num_classes"]:
        raise CheckpointError(
            f"task.json of '{folder.name}' says {task['num_classes']} classes and its head has "
            f"{complete.num_classes}; save the preset again"
        )
    return complete, tensors


def activation_name(task: dict[str, Any]) -> str:
    """Returns the name of the head's last activation; ``linear`` if it gives logits."""
    value = task.get("activation")
    return str(value.get("config") if isinstance(value, dict) else value or "linear")


def _densenet(
    folder: Folder, configuration: DenseNetConfig, task: dict[str, Any], arrays: dict[str, Array]
) -> tuple[DenseNetConfig, dict[str, Tensor]]:
    found = keras_layers.layers(arrays, "dense")
    if len(found) != 1:
        raise CheckpointError(f"the head of '{folder.name}' is none that KerasHub gives a DenseNet")
    tensors = keras_layers.classifier(found[0], folder.name)
    classes = len(tensors["classifier.weight"])
    return replace(configuration, num_classes=classes, head_pooling=_pooling(task, folder.name)), tensors


def _pooling(task: dict[str, Any], name: str) -> Pooling:
    pooling: Pooling = task.get("pooling", "avg")
    if pooling not in get_args(Pooling):
        raise CheckpointError(f"the head of '{name}' pools by '{pooling}'; only avg and max fit its layers")
    return pooling


def _vgg(
    folder: Folder,
    configuration: VGGConfig,
    task: dict[str, Any],
    arrays: dict[str, Array],
    legacy_head: bool,
) -> tuple[VGGConfig, dict[str, Tensor]]:
    convolutions = keras_layers.layers(arrays, "conv2d", _VGG)
    inner = keras_layers.layers(arrays, "dense", f"{_VGG}sequential/layers/")
    outer = keras_layers.layers(arrays, "dense", _VGG)
    name = folder.name
    weights = [(convolution(layer, name), layer) for layer in convolutions]
    match len(convolutions), len(inner), len(outer):
        case 2, 0, 1:
            _warn_of_old_head(folder, legacy_head)
            configuration = replace(
                configuration,
                head="legacy" if legacy_head else "valid",
                head_pooling=_pooling(task, name),
                head_activation=activation_name(task),
            )
            weights += [(dense(outer[0], name), outer[0])]
        case 0, 0, 3:
            configuration = replace(configuration, head="flatten")
            weights += _flattened(outer, configuration, name)
        case 2, 2, 1:
            configuration = replace(
                configuration, head="legacy-flatten", head_activation=activation_name(task)
            )
            weights += _flattened([*inner, *outer], configuration, name)
        case _:
            raise CheckpointError(f"the head of '{name}' is none that KerasHub gives a VGG")
    return keras_layers.head(configuration, weights)


def _flattened(found: list[Layer], configuration: VGGConfig, name: str) -> list[tuple[Tensor, Layer]]:
    if configuration.image_size is None:
        raise CheckpointError(f"'{name}' flattens its map but fixes no image_shape; save the preset with one")
    map_size = configuration.map_size(configuration.image_size)
    first, *others = found
    return [(dense(first, name, map_size), first), *((dense(layer, name), layer) for layer in others)]


def _warn_of_old_head(folder: Folder, legacy_head: bool) -> None:
    version = str((folder.json("metadata.json") or {}).get("keras_hub_version", ""))
    match = re.match(r"(\d+)\.(\d+)", version)
    if match and (int(match[1]), int(match[2])) < _NEW_HEAD and not legacy_head:
        _log.warning(
            "%s was saved by KerasHub %s, whose VGG head computed otherwise; it is served as KerasHub loads "
            "it today. If it was trained with that version, add ?legacy_head=true to its name",
            folder.name,
            version,
        )
