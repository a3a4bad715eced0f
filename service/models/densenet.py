"""DenseNet: builds a module from a configuration, with torchvision's layers and parameter names.

The layers are defined here because importing torchvision takes longer than importing torch: it brings torch's
compiler.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.models.configuration import DenseNetConfig
from service.models.heads import GlobalPool, LayeredHead, NoHead, is_virtual
from service.models.named_heads import layers_of
from service.models.stems import build_stem


class DenseLayer(nn.Module):
    """Makes ``growth_rate`` more channels from the maps of all earlier layers."""

    def __init__(self, inputs: int, bottleneck: int, growth_rate: int) -> None:
        super().__init__()
        inner = bottleneck * growth_rate
        self.norm1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(inputs, inner, kernel_size=1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(inner, growth_rate, kernel_size=3, padding=1, bias=False)

    def forward(self, maps: list[Tensor]) -> Tensor:
        narrowed = self.conv1(self.relu1(self.norm1(torch.cat(maps, 1))))
        made: Tensor = self.conv2(self.relu2(self.norm2(narrowed)))
        return made


class DenseBlock(nn.ModuleDict):
    """A block of dense layers: ``float [N, inputs, H, W]`` → ``float [N, inputs + layers * growth_rate, H, W]``."""

    def __init__(self, layers: int, inputs: int, bottleneck: int, growth_rate: int) -> None:
        super().__init__()
        for number in range(layers):
            layer = DenseLayer(inputs + number * growth_rate, bottleneck, growth_rate)
            self.add_module(f"denselayer{number + 1}", layer)

    def forward(self, first: Tensor) -> Tensor:
        maps = [first]
        for layer in self.values():
            maps.append(layer(maps))
        return torch.cat(maps, 1)


class Transition(nn.Sequential):
    """A step between two blocks: fewer channels, half the height and width."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(inputs, outputs, kernel_size=1, bias=False)
        self.pool = nn.AvgPool2d(kernel_size=2, stride=2)


class DenseNet(nn.Module):
    """torchvision's DenseNet with any stem, compression and head; ``layers`` describes the head.

    Modules are made and initialised in torchvision's order, so a seed gives the weights that
    ``torchvision.models.densenet121()`` and its siblings get.
    """

    def __init__(self, configuration: DenseNetConfig) -> None:
        super().__init__()
        self.features = build_stem(configuration)
        width = configuration.stem_width
        for number, layers in enumerate(configuration.blocks, start=1):
            block = DenseBlock(layers, width, configuration.bottleneck, configuration.growth_rate)
            self.features.add_module(f"denseblock{number}", block)
            width += layers * configuration.growth_rate
            if number < len(configuration.blocks):
                kept = int(width * configuration.compression)
                self.features.add_module(f"transition{number}", Transition(width, kept))
                width = kept
        # torchvision calls the last norm ``norm5``, whatever the number of blocks.
        self.features.add_module("norm5", nn.BatchNorm2d(width))
        self.layers = layers_of(configuration)
        self.classifier: nn.Module
        if configuration.layers:
            self.classifier = LayeredHead(self.layers) if self.layers else NoHead()
        else:
            self.classifier = (
                nn.Linear(configuration.pooled_width, configuration.num_classes) if self.layers else NoHead()
            )
        self.pool = GlobalPool(configuration.head_pooling)
        self._initialise(configuration.epsilon)

    def _initialise(self, epsilon: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = epsilon
            elif isinstance(module, nn.Conv2d) and not is_virtual(module):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward_features(self, pixels: Tensor) -> Tensor:
        """Returns the last block's output after its norm and ReLU, float ``[N, C, H', W']``."""
        return F.relu(self.features(pixels), inplace=True)

    def forward_head(self, features: Tensor) -> Tensor:
        """Returns logits, float ``[N, classes]``, from the output of `forward_features`.

        Raises `CheckpointError` for a network without a head.
        """
        logits: Tensor = self.head()(features)
        return logits

    def head(self) -> nn.Module:
        """Returns `forward_head` as a module that shares its parameters and does not hold the rest of the network."""
        if isinstance(self.classifier, LayeredHead):
            return self.classifier
        return nn.Sequential(self.pool, self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def build(configuration: DenseNetConfig) -> DenseNet:
    """Builds the network in float32, initialised like torchvision's from torch's current random state."""
    return DenseNet(configuration)
