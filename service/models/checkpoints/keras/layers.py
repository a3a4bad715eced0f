"""Turns the arrays of Keras layers into torchvision's tensors, for KerasHub's presets and all other Keras files.

A layer's arrays lie under ``layers/<class>[_N]/vars/<i>``, where N counts the layers of a class in graph order:
conv2d, conv2d_1, ... conv2d_10. torchvision registers the modules of the same network in this order, so both lists
are zipped.

    Conv2D              0 kernel (height, width, in, out)   1 bias
    Dense               0 kernel (in, out)                  1 bias
    BatchNormalization  0 gamma   1 beta   2 moving mean    3 moving variance
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from service.errors import CheckpointError
from service.models.checkpoints.checkpoint import Activation
from service.models.checkpoints.keras.hdf5 import Array
from service.models.configuration import Configuration, VGGConfig
from service.models.network import build

Layer = dict[int, Array]

_WEIGHT = re.compile(r"^layers/(.*/)?(conv2d|dense|batch_normalization)(_\d+)?/vars/\d+$")

_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def is_weight(path: str) -> bool:
    """Returns True for an array of a layer that computes, and False for an optimizer's or a dropout's seed."""
    return _WEIGHT.search(path) is not None


def layers(arrays: dict[str, Array], kind: str, prefix: str = "layers/") -> list[Layer]:
    """Returns the layers of one class directly below ``prefix``, in graph order."""
    pattern = re.compile(rf"{re.escape(prefix)}{kind}(?:_(\d+))?/vars/(\d+)")
    found: dict[int, Layer] = {}
    for path, array in arrays.items():
        if match := pattern.fullmatch(path):
            found.setdefault(int(match[1] or 0), {})[int(match[2])] = array
    return [found[number] for number in sorted(found)]


def of_layers(
    convolved: list[Layer], normed: list[Layer], configuration: Configuration, name: str
) -> dict[str, Tensor]:
    """Returns the tensors of ``features`` under torchvision's names, from layers in order. Raises `CheckpointError`."""
    with torch.device("meta"):
        features = build(replace(configuration, num_classes=0)).features
    state_dict: dict[str, Tensor] = {}
    convolutions = _modules(features, nn.Conv2d)
    for key, layer in _zip(convolutions, convolved, f"convolutions of '{name}'"):
        state_dict |= _with_bias(f"features.{key}", convolution(layer, name), layer)
    norms = _modules(features, nn.BatchNorm2d)
    for key, layer in _zip(norms, normed, f"batch norms of '{name}'"):
        for number, part in enumerate(_BATCH_NORM):
            state_dict[f"features.{key}.{part}"] = torch.from_numpy(_variable(layer, number, name))
        state_dict[f"features.{key}.num_batches_tracked"] = torch.zeros((), dtype=torch.long)
    return state_dict


def convolution(layer: Layer, name: str) -> Tensor:
    """Returns a kernel in torch's order, ``[out, in, height, width]``."""
    kernel = _variable(layer, 0, name)
    if kernel.ndim != 4:
        raise CheckpointError(f"'{name}' has a convolution of shape {kernel.shape}; it is no VGG or DenseNet")
    return torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))


def dense(layer: Layer, name: str, map_size: tuple[int, int] | None = None) -> Tensor:
    """Returns a dense kernel in torch's order, ``[out, in]``.

    With ``map_size`` (height, width) the inputs are a flattened map, which Keras flattens as height, width, channel
    and torch as channel, height, width.
    """
    kernel = _variable(layer, 0, name)
    if kernel.ndim != 2:
        raise CheckpointError(f"'{name}' has a dense layer of shape {kernel.shape}; it is no VGG or DenseNet")
    if map_size is not None:
        height, width = map_size
        if height * width == 0 or kernel.shape[0] % (height * width):
            raise CheckpointError(f"the head of '{name}' does not fit a map of {height}x{width}")
        kernel = kernel.reshape(height, width, -1, kernel.shape[1]).transpose(2, 0, 1, 3)
        kernel = kernel.reshape(-1, kernel.shape[-1])
    return torch.from_numpy(np.ascontiguousarray(kernel.T))


def head(
    configuration: VGGConfig, weights: list[tuple[Tensor, Layer]]
) -> tuple[VGGConfig, dict[str, Tensor]]:
    """Returns the configuration with the head's widths, and the head's tensors, from a VGG's head layers in order."""
    numbers = range(len(weights)) if configuration.head == "legacy-flatten" else (0, 3, 6)
    state_dict: dict[str, Tensor] = {}
    for number, (weight, layer) in zip(numbers, weights, strict=True):
        state_dict |= _with_bias(f"classifier.{number}", weight.flatten(1), layer)
    widths = [len(weight) for weight, _ in weights]
    return (
        replace(
            configuration,
            hidden_first=None if widths[0] == widths[1] else widths[0],
            hidden=widths[1],
            hidden_dense=widths[2] if configuration.head == "legacy-flatten" else None,
            num_classes=widths[-1],
        ),
        state_dict,
    )


def scores(activation: str) -> Activation:
    """Returns what turns logits into scores, for a Keras activation. Raises `CheckpointError` for any other.

    A model without an activation gives logits; softmax then makes probabilities of them.
    """
    if activation in ("linear", "softmax"):
        return "softmax"
    if activation == "sigmoid":
        return "sigmoid"
    raise CheckpointError(
        f"a head that ends in '{activation}' cannot be served; softmax, sigmoid or none can"
    )


def classifier(layer: Layer, name: str) -> dict[str, Tensor]:
    """Returns a DenseNet's one dense layer under torchvision's names."""
    return _with_bias("classifier", dense(layer, name), layer)


def _with_bias(key: str, weight: Tensor, layer: Layer) -> dict[str, Tensor]:
    tensors = {f"{key}.weight": weight}
    if 1 in layer:
        tensors[f"{key}.bias"] = torch.from_numpy(layer[1])
    return tensors


def _variable(layer: Layer, number: int, name: str) -> Array:
    if number not in layer:
        raise CheckpointError(f"'{name}' lacks an array of one of its layers; fetch it again")
    return layer[number]


def _modules(features: nn.Module, kind: type[nn.Module]) -> list[str]:
    return [key for key, module in features.named_modules() if isinstance(module, kind)]


def _zip(keys: list[str], found: list[Layer], what: str) -> zip[tuple[str, Layer]]:
    if len(keys) != len(found):
        raise CheckpointError(f"the {what} are {len(found)} and its configuration wants {len(keys)}")
    return zip(keys, found, strict=True)
