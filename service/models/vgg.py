"""VGG: builds a module from a configuration, with torchvision's layers and parameter names."""

from __future__ import annotations

from torch import Tensor, nn

from service.models.configuration import VGGConfig
from service.models.head import KERNEL
from service.models.heads import LayeredHead, NoHead, dense_layers, is_virtual
from service.models.named_heads import layers_of


class VGG(nn.Module):
    """torchvision's VGG with any widths and with the head of the checkpoint's origin; ``layers`` describes the head.

    Modules are made and initialised in torchvision's order, so a seed gives the weights that
    ``torchvision.models.vgg16()`` and its siblings get.
    """

    def __init__(self, configuration: VGGConfig) -> None:
        super().__init__()
        self.features = _layers(configuration)
        self.classifier: nn.Module
        self.layers = layers_of(configuration)
        self.torchvisions_head = (
            configuration.head == "adaptive" and bool(self.layers) and not configuration.layers
        )
        if self.torchvisions_head:
            self.avgpool = nn.AdaptiveAvgPool2d((KERNEL, KERNEL))
            self.classifier = nn.Sequential(*dense_layers(configuration, configuration.width * KERNEL**2))
        else:
            self.classifier = LayeredHead(self.layers) if self.layers else NoHead()
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if is_virtual(module):
                continue
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward_features(self, pixels: Tensor) -> Tensor:
        """Returns the last stage's output, float ``[N, C, H/32, W/32]`` for five stages."""
        features: Tensor = self.features(pixels)
        return features

    def forward_head(self, features: Tensor) -> Tensor:
        """Returns logits, float ``[N, classes]``, from the output of `forward_features`.

        Raises `CheckpointError` for a network without a head.
        """
        logits: Tensor = self.head()(features)
        return logits

    def head(self) -> nn.Module:
        """Returns `forward_head` as a module that shares its parameters and does not hold the rest of the network."""
        if self.torchvisions_head:
            return nn.Sequential(self.avgpool, nn.Flatten(), self.classifier)
        return self.classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _layers(configuration: VGGConfig) -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = configuration.channels
    for stage in configuration.stages:
        for width in stage:
            layers.append(nn.Conv2d(inputs, width, kernel_size=3, padding=1))
            layers += [nn.BatchNorm2d(width)] if configuration.batch_norm else []
            layers.append(nn.ReLU(inplace=True))
            inputs = width
        layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
    return nn.Sequential(*layers)


def build(configuration: VGGConfig) -> VGG:
    """Builds the network in float32, initialised like torchvision's from torch's current random state."""
    return VGG(configuration)
