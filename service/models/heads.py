"""A head as a torch module: the layers of `service.models.head`, applied in order.

Every head has the parameters of dense layers and batch norms. A convolution views a dense layer's weights as a
kernel; the order within a row (channel, height, width) is that of a kernel already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.errors import CheckpointError
from service.models.configuration import VGGConfig
from service.models.head import Activate, Adapt, Convolution, Flatten, Layer, Norm, Pool, Pooling, Weighted

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": torch.positive,
    "relu": F.relu,
    "relu6": F.relu6,
    "selu": F.selu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "hard_swish": F.hardswish,
    "mish": F.mish,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softmax": partial(F.softmax, dim=1),
}


def is_virtual(module: nn.Module) -> bool:
    """Returns True if the module's own parameters have no memory yet (torch's device ``meta``).

    They must not be initialised: torch would import its compiler, a second of CPU, to draw numbers that are never
    stored.
    """
    return any(parameter.is_meta for parameter in module.parameters(recurse=False))


class NoHead(nn.Module):
    """Takes the place of a head that the checkpoint lacks, so that nothing classifies with random weights."""

    def forward(self, features: Tensor) -> Tensor:
        raise CheckpointError("this checkpoint has no classification head; it serves features only")


class LayeredHead(nn.Module):
    """A head of any layers: ``float [N, C, h, w]`` → ``float [N, classes]``.

    Layers with parameters are sub-modules by their names, so ``classifier.0.weight`` is the key that torchvision
    uses.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.layers = tuple(layers)
        for layer in self.layers:
            if isinstance(layer, Weighted):
                self.add_module(layer.name, _module(layer))

    def forward(self, features: Tensor) -> Tensor:
        for layer in self.layers:
            features = _apply(layer, features, self)
        return features


def dense_layers(configuration: VGGConfig, inputs: int) -> tuple[nn.Module, ...]:
    """Returns the modules of torchvision's ``classifier``, made in its order."""
    first = configuration.hidden_first or configuration.hidden
    return (
        nn.Linear(inputs, first),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(first, configuration.hidden),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(configuration.hidden, configuration.num_classes),
    )


class GlobalPool(nn.Module):
    """Global pooling: ``float [N, C, h, w]`` → ``float [N, C]``, or ``[N, 2C]`` if both kinds are concatenated."""

    def __init__(self, by: Pooling) -> None:
        super().__init__()
        self.by = by

    def forward(self, features: Tensor) -> Tensor:
        if self.by == "max":
            return torch.amax(features, dim=(2, 3))
        mean = torch.flatten(F.adaptive_avg_pool2d(features, (1, 1)), 1)
        if self.by == "avg":
            return mean
        largest = torch.amax(features, dim=(2, 3))
        if self.by == "avgmax":
            return 0.5 * (mean + largest)
        return torch.cat((mean, largest) if self.by == "catavgmax" else (largest, mean), 1)


def _module(layer: Weighted) -> nn.Module:
    if isinstance(layer, Norm):
        return nn.BatchNorm1d(layer.width, layer.epsilon)
    return nn.Linear(layer.inputs, layer.outputs, bias=layer.bias)


def _apply(layer: Layer, features: Tensor, head: nn.Module) -> Tensor:
    match layer:
        case Adapt():
            return _adapted(features, layer)
        case Pool():
            return cast(Tensor, GlobalPool(layer.by)(features))
        case Flatten():
            return torch.flatten(features, 1)
        case Convolution():
            return _convolved(features, layer, cast(nn.Linear, head.get_submodule(layer.name)))
        case Activate():
            return activation(layer)(features)
    return cast(Tensor, head.get_submodule(layer.name)(features))


def _adapted(features: Tensor, layer: Adapt) -> Tensor:
    size = layer.size
    if layer.enlarge:
        size = max(size[0], features.shape[-2]), max(size[1], features.shape[-1])
        if size == tuple(features.shape[-2:]):
            return features
    return F.adaptive_avg_pool2d(features, size)


def _convolved(features: Tensor, layer: Convolution, dense: nn.Linear) -> Tensor:
    weight = dense.weight.view(layer.outputs, -1, layer.kernel, layer.kernel)
    return F.conv2d(features, weight, dense.bias, padding=layer.padding)


def activation(layer: Activate) -> Callable[[Tensor], Tensor]:
    """Returns the function that a layer names."""
    if layer.by == "leaky_relu":
        return partial(F.leaky_relu, negative_slope=layer.slope)
    if layer.by == "elu":
        return partial(F.elu, alpha=layer.slope)
    return _ACTIVATIONS[layer.by]
