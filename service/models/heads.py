"""Heads of VGGs that are not torchvision's: the same dense layers, applied as their origin applies them.

Parameters are those of dense layers in every head, `Linear(channels * 7 * 7, hidden)` and so on with
torchvision's names ``classifier.0``, ``.3`` and ``.6``. A head that slides views the first one's weights
as a 7x7 kernel; the order within a row, channel, height, width, is that of a kernel already.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.errors import CheckpointError
from service.models.configuration import VGGConfig

#: Side of the kernel that the first layer is, and of the map that torchvision's head averages to.
KERNEL = 7

#: What a hidden layer of a legacy head may be followed by: Keras takes the classifier's own activation.
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": torch.positive,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "softmax": partial(F.softmax, dim=1),
}


class NoHead(nn.Module):
    """In place of a head that the checkpoint does not have. Nothing classifies with random weights."""

    def forward(self, features: Tensor) -> Tensor:
        raise CheckpointError("this checkpoint has no classification head; it serves features only")


class SlidingHead(nn.Sequential):
    """timm's and KerasHub's: 7x7 convolution, 1x1 convolution, global pooling, dense layer.

    ``float [N, C, h, w]`` → ``float [N, classes]``. With ``enlarge`` a map below 7x7 is brought to it by
    adaptive averaging first (``timm.models.vgg.ConvMlp``); without, such a map is an error.
    """

    def __init__(self, configuration: VGGConfig, *, enlarge: bool) -> None:
        super().__init__(*dense_layers(configuration, configuration.width * KERNEL**2))
        self.enlarge = enlarge
        self.pool = pooling(configuration.head_pooling)

    def forward(self, features: Tensor) -> Tensor:
        if self.enlarge and min(features.shape[-2:]) < KERNEL:
            size = (max(KERNEL, features.shape[-2]), max(KERNEL, features.shape[-1]))
            features = F.adaptive_avg_pool2d(features, size)
        hidden = F.relu(_convolve(features, _linear(self[0]), KERNEL))
        hidden = F.relu(_convolve(hidden, _linear(self[3]), 1))
        return cast(Tensor, self[6](self.pool(hidden)))


class LegacyHead(nn.Sequential):
    """KerasHub's before 0.27: as above, padded to "same", the final activation after each hidden layer."""

    def __init__(self, configuration: VGGConfig) -> None:
        super().__init__(*dense_layers(configuration, configuration.width * KERNEL**2))
        self.activation = _ACTIVATIONS[configuration.head_activation]
        self.pool = pooling(configuration.head_pooling)

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.activation(_convolve(features, _linear(self[0]), KERNEL, padding=KERNEL // 2))
        hidden = self.activation(_convolve(hidden, _linear(self[3]), 1))
        return cast(Tensor, self[6](self.pool(hidden)))


class LegacyFlattenHead(nn.Sequential):
    """KerasHub's before 0.27 with ``pooling="flatten"``: both convolutions, then three dense layers."""

    def __init__(self, configuration: VGGConfig) -> None:
        first, hidden = configuration.hidden_first or configuration.hidden, configuration.hidden
        dense = configuration.hidden_dense or hidden
        height, width = _map_size(configuration)
        super().__init__(
            nn.Linear(configuration.width * KERNEL**2, first),
            nn.Linear(first, hidden),
            nn.Linear(hidden * height * width, dense),
            nn.Linear(dense, dense),
            nn.Linear(dense, configuration.num_classes),
        )
        self.activation = _ACTIVATIONS[configuration.head_activation]

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.activation(_convolve(features, _linear(self[0]), KERNEL, padding=KERNEL // 2))
        hidden = self.activation(_convolve(hidden, _linear(self[1]), 1))
        dense = F.relu(self[3](F.relu(self[2](torch.flatten(hidden, 1)))))
        return cast(Tensor, self[4](dense))


class FlattenHead(nn.Sequential):
    """KerasHub's and KerasCV's ``flatten``: three dense layers on the whole map, so for one image size."""

    def __init__(self, configuration: VGGConfig) -> None:
        height, width = _map_size(configuration)
        super().__init__(*dense_layers(configuration, configuration.width * height * width))

    def forward(self, features: Tensor) -> Tensor:
        logits = torch.flatten(features, 1)
        for layer in self:
            logits = layer(logits)
        return logits


def dense_layers(configuration: VGGConfig, inputs: int) -> tuple[nn.Module, ...]:
    """torchvision's ``classifier``, made in its order."""
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


def build_head(configuration: VGGConfig) -> nn.Module:
    """Any head but torchvision's own: ``float [N, C, h, w]`` → ``float [N, classes]``."""
    if configuration.num_classes == 0:
        return NoHead()
    match configuration.head:
        case "sliding" | "valid":
            return SlidingHead(configuration, enlarge=configuration.head == "sliding")
        case "flatten":
            return FlattenHead(configuration)
        case "legacy":
            return LegacyHead(configuration)
        case "legacy-flatten":
            return LegacyFlattenHead(configuration)
    raise CheckpointError(f"there is no VGG head '{configuration.head}'")


class AveragePool(nn.Module):
    """Global pooling: ``float [N, C, h, w]`` → ``float [N, C]``."""

    def forward(self, features: Tensor) -> Tensor:
        return torch.flatten(F.adaptive_avg_pool2d(features, (1, 1)), 1)


class MaxPool(nn.Module):
    """The same with the largest value of each channel."""

    def forward(self, features: Tensor) -> Tensor:
        return torch.amax(features, dim=(2, 3))


def pooling(name: str) -> nn.Module:
    """The global pooling that a configuration calls ``name``."""
    return MaxPool() if name == "max" else AveragePool()


def _map_size(configuration: VGGConfig) -> tuple[int, int]:
    if configuration.image_size is None:
        raise CheckpointError("a VGG whose head flattens the map needs a fixed image size")
    return configuration.map_size(configuration.image_size)


def _convolve(features: Tensor, layer: nn.Linear, kernel: int, padding: int = 0) -> Tensor:
    weight = layer.weight.view(layer.out_features, -1, kernel, kernel)
    return F.conv2d(features, weight, layer.bias, padding=padding)


def _linear(module: nn.Module) -> nn.Linear:
    return cast(nn.Linear, module)
