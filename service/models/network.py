"""Builds a network of either family from a configuration."""

from __future__ import annotations

from service.models import densenet, vgg
from service.models.configuration import Configuration, VGGConfig

Network = vgg.VGG | densenet.DenseNet


def build(configuration: Configuration) -> Network:
    """Builds the untrained network from torch's current random state, on its current default device."""
    if isinstance(configuration, VGGConfig):
        return vgg.build(configuration)
    return densenet.build(configuration)
