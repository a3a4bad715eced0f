"""DenseNet: configuration → module, on torchvision's own classes and with its parameter names."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from service.models._torchvision import torchvision
from service.models.configuration import DenseNetConfig
from service.models.head import layers_of
from service.models.heads import GlobalPool, LayeredHead, NoHead
from service.models.stems import build_stem


class DenseNet(torchvision.models.DenseNet):
    """torchvision's DenseNet with a free stem, a free compression and a free head, which ``layers`` describes.

    Modules are made and initialised in torchvision's order, so that a seed gives the very weights
    that ``torchvision.models.densenet121()`` and its siblings get from it.
    """

    def __init__(self, configuration: DenseNetConfig, *, drop_rate: float = 0.0) -> None:
        nn.Module.__init__(self)
        self.features = build_stem(configuration)
        width = configuration.stem_width
        for number, layers in enumerate(configuration.blocks, start=1):
            block = torchvision.models.densenet._DenseBlock(
                layers, width, configuration.bottleneck, configuration.growth_rate, drop_rate
            )
            self.features.add_module(f"denseblock{number}", block)
            width += layers * configuration.growth_rate
            if number < len(configuration.blocks):
                kept = int(width * configuration.compression)
                self.features.add_module(
                    f"transition{number}", torchvision.models.densenet._Transition(width, kept)
                )
                width = kept
        # torchvision's name, whatever the number of blocks: it is their last norm, not the fifth.
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
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.BatchNorm2d):
                module.eps = epsilon
            elif isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward_features(self, pixels: Tensor) -> Tensor:
        """The last block's output after its norm and ReLU, float ``[N, C, H', W']``."""
        return F.relu(self.features(pixels), inplace=True)

    def forward_head(self, features: Tensor) -> Tensor:
        """Logits, float ``[N, classes]``, from what `forward_features` gave.

        Raises `CheckpointError` for a network without a head.
        """
        logits: Tensor = self.head()(features)
        return logits

    def head(self) -> nn.Module:
        """`forward_head` as a module of the same parameters, which does not hold the rest of the network."""
        if isinstance(self.classifier, LayeredHead):
            return self.classifier
        return nn.Sequential(self.pool, self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def build(configuration: DenseNetConfig, *, drop_rate: float = 0.0) -> DenseNet:
    """The network, float32, with torchvision's own initialisation from torch's current random state.

    ``drop_rate`` is a matter of training only: an evaluated network has no dropout.
    """
    return DenseNet(configuration, drop_rate=drop_rate)
