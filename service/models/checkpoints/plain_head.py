"""Gives torchvision's own heads their names and numbers, so that one network has one configuration."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from torch import Tensor

from service.models.configuration import Configuration, VGGConfig
from service.models.head import KERNEL, Activate, Adapt, Flatten, Layer, Linear, Pool

_DENSE = [Linear, Activate, Linear, Activate, Linear]


def with_head(
    configuration: Configuration,
    layers: tuple[Layer, ...],
    tensors: dict[str, Tensor],
    image_size: tuple[int, int] | None = None,
) -> tuple[Configuration, dict[str, Tensor]]:
    """Returns the configuration with a head of these layers, and the head's tensors under its names.

    The layers with tensors are numbered 0, 1, 2, ... ``image_size`` (height, width) is the only one that the head fits
    if it flattens the map.
    """
    dense = [layer for layer in layers if isinstance(layer, Linear)]
    kinds: list[type[Layer]] = [type(layer) for layer in layers]
    usual = {layer for layer in layers if isinstance(layer, Activate)} <= {Activate()}
    plain = usual and all(layer.bias for layer in dense)
    if isinstance(configuration, VGGConfig):
        flattens = kinds == [Flatten, *_DENSE] and image_size is not None
        adapts = kinds == [Adapt, Flatten, *_DENSE] and layers[0] == Adapt((KERNEL, KERNEL))
        if plain and (flattens or adapts):
            first, hidden, classes = (layer.outputs for layer in dense)
            other_first = None if first == hidden else first
            configuration = replace(
                configuration, hidden=hidden, hidden_first=other_first, num_classes=classes
            )
            if flattens:
                configuration = replace(configuration, head="flatten", image_size=image_size)
            return configuration, {_renumbered(key): tensor for key, tensor in tensors.items()}
    elif plain and kinds == [Pool, Linear]:
        pooling = cast(Pool, layers[0]).by
        configuration = replace(configuration, num_classes=dense[0].outputs, head_pooling=pooling)
        return configuration, {key.replace(".0.", "."): tensor for key, tensor in tensors.items()}
    return replace(configuration, num_classes=dense[-1].outputs, layers=layers), tensors


def _renumbered(key: str) -> str:
    """Returns the name in torchvision's head, where a ReLU and a dropout follow each dense layer."""
    name, number, part = key.split(".")
    return f"{name}.{3 * int(number)}.{part}"
