"""The layers of a configuration's head: derived from its sizes for a named head, else the configuration's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from service.errors import CheckpointError
from service.models.configuration import Configuration, VGGConfig
from service.models.head import (
    KERNEL,
    Activate,
    Adapt,
    Convolution,
    Flatten,
    Layer,
    Linear,
    Nonlinearity,
    Pool,
)


def layers_of(configuration: Configuration) -> tuple[Layer, ...]:
    """Returns the head's layers in the order of application; empty for a network without a head.

    Raises `CheckpointError` for a flattening head whose image size is not fixed.
    """
    if configuration.num_classes == 0:
        return ()
    if configuration.layers:
        return configuration.layers
    if configuration.family == "vgg":
        return _NAMED[configuration.head](configuration)
    return Pool(configuration.head_pooling), Linear("", configuration.pooled_width, configuration.num_classes)


def _adaptive(configuration: VGGConfig) -> tuple[Layer, ...]:
    inputs = configuration.width * KERNEL**2
    return Adapt((KERNEL, KERNEL)), Flatten(), *_dense(configuration, inputs)


def _flatten(configuration: VGGConfig) -> tuple[Layer, ...]:
    height, width = _map_size(configuration)
    return Flatten(), *_dense(configuration, configuration.width * height * width)


def _dense(configuration: VGGConfig, inputs: int) -> tuple[Layer, ...]:
    """Returns the layers of torchvision's ``classifier``."""
    first, hidden = configuration.hidden_first or configuration.hidden, configuration.hidden
    return (
        Linear("0", inputs, first),
        Activate(),
        Linear("3", first, hidden),
        Activate(),
        Linear("6", hidden, configuration.num_classes),
    )


def _sliding(configuration: VGGConfig) -> tuple[Layer, ...]:
    first, hidden = configuration.hidden_first or configuration.hidden, configuration.hidden
    padding = KERNEL // 2 if configuration.head == "legacy" else 0
    activation = Activate(_hidden_activation(configuration) if configuration.head == "legacy" else "relu")
    return (
        *((Adapt((KERNEL, KERNEL), enlarge=True),) if configuration.head == "sliding" else ()),
        Convolution("0", configuration.width * KERNEL**2, first, KERNEL, padding),
        activation,
        Convolution("3", first, hidden, 1),
        activation,
        Pool(configuration.head_pooling),
        Linear("6", configuration.pooled_hidden, configuration.num_classes),
    )


def _legacy_flatten(configuration: VGGConfig) -> tuple[Layer, ...]:
    first, hidden = configuration.hidden_first or configuration.hidden, configuration.hidden
    dense = configuration.hidden_dense or hidden
    height, width = _map_size(configuration)
    activation = Activate(_hidden_activation(configuration))
    return (
        Convolution("0", configuration.width * KERNEL**2, first, KERNEL, KERNEL // 2),
        activation,
        Convolution("1", first, hidden, 1),
        activation,
        Flatten(),
        Linear("2", hidden * height * width, dense),
        Activate(),
        Linear("3", dense, dense),
        Activate(),
        Linear("4", dense, configuration.num_classes),
    )


_NAMED: dict[str, Callable[[VGGConfig], tuple[Layer, ...]]] = {
    "adaptive": _adaptive,
    "sliding": _sliding,
    "valid": _sliding,
    "flatten": _flatten,
    "legacy": _sliding,
    "legacy-flatten": _legacy_flatten,
}


def _hidden_activation(configuration: VGGConfig) -> Nonlinearity:
    if configuration.head_activation not in get_args(Nonlinearity):
        raise CheckpointError(
            f"a head with '{configuration.head_activation}' between its layers is not known"
        )
    activation: Nonlinearity = configuration.head_activation  # type: ignore[assignment]
    return activation


def _map_size(configuration: VGGConfig) -> tuple[int, int]:
    if configuration.image_size is None:
        raise CheckpointError("a VGG whose head flattens the map needs a fixed image size")
    return configuration.map_size(configuration.image_size)
