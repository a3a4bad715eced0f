"""Recognises a Keras model's backbone: its layers in order become a VGG's or a DenseNet's configuration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from service.errors import CheckpointError
from service.models.checkpoints.keras.graph import Leaf
from service.models.checkpoints.tensors.shapes import compression
from service.models.configuration import Configuration, DenseNetConfig, VGGConfig

#: Epsilon of `keras.layers.BatchNormalization` in the DenseNets of keras.applications and KerasHub.
EPSILON = 1.001e-5

_BODY = (
    "Conv2D", "MaxPooling2D", "BatchNormalization", "Activation", "ReLU", "ZeroPadding2D", "Concatenate",
    "AveragePooling2D",
)  # fmt: skip


def configuration_of(body: list[Leaf], complete: bool, name: str) -> Configuration:
    """Returns the configuration, without a head, of a backbone's layers in order.

    ``complete`` is True if the layers have their arguments; weights alone leave the pools and paddings to rules. Raises
    `CheckpointError` for layers that are no VGG and no DenseNet, naming the first that does not fit.
    """
    for leaf in body:
        if leaf.kind not in _BODY:
            raise CheckpointError(
                f"'{name}' has a layer '{leaf.name}' ({leaf.kind}) that no VGG or DenseNet has"
            )
    kernels = [leaf.arrays[0] for leaf in body if leaf.kind == "Conv2D" and 0 in leaf.arrays]
    if len(kernels) != sum(leaf.kind == "Conv2D" for leaf in body) or any(
        kernel.ndim != 4 for kernel in kernels
    ):
        raise CheckpointError(f"'{name}' lacks an array of one of its layers; fetch it again")
    if any(kernel.shape[:2] == (1, 1) for kernel in kernels):
        return _densenet(body, kernels, complete, name)
    return _vgg(body, kernels, complete, name)


def _vgg(body: list[Leaf], kernels: list[Any], complete: bool, name: str) -> VGGConfig:
    if any(kernel.shape[:2] != (3, 3) for kernel in kernels):
        raise CheckpointError(
            f"'{name}' holds neither a VGG nor a DenseNet: its convolutions have other sizes"
        )
    channels = kernels[0].shape[2]
    if complete:
        _check_vgg(body, name)
        stages: list[tuple[int, ...]] = [()]
        widths = iter(kernel.shape[3] for kernel in kernels)
        for leaf in body:
            if leaf.kind == "Conv2D":
                stages[-1] = (*stages[-1], next(widths))
            elif leaf.kind == "MaxPooling2D":
                stages.append(())
        return VGGConfig(stages=tuple(stages[:-1]), num_classes=0, channels=channels)
    counts = {8: (1, 1, 2, 2, 2), 10: (2,) * 5, 13: (2, 2, 3, 3, 3), 16: (2, 2, 4, 4, 4)}.get(len(kernels))
    if counts is None:
        raise CheckpointError(
            f"'{name}' has {len(kernels)} convolutions, and no VGG has; weights alone do not say where its pools are, "
            "so save the whole model: model.save('model.keras')"
        )
    widths = iter(kernel.shape[3] for kernel in kernels)
    stages = [tuple(next(widths) for _ in range(count)) for count in counts]
    return VGGConfig(stages=tuple(stages), num_classes=0, channels=channels)


def _check_vgg(body: list[Leaf], name: str) -> None:
    usual: dict[str, dict[str, Any]] = {
        "Conv2D": {"strides": (1, 1), "padding": "same", "dilation_rate": (1, 1), "groups": 1},
        "MaxPooling2D": {"pool_size": (2, 2), "strides": (2, 2), "padding": "valid"},
    }
    for number, leaf in enumerate(body):
        _refuse_unusual(leaf, usual.get(leaf.kind, {}), name)
        if leaf.kind == "Conv2D" and _activation_of(leaf) != "relu":
            following = body[number + 1] if number + 1 < len(body) else leaf
            if _activation_of(leaf) != "linear" or not _is_relu(following):
                raise CheckpointError(
                    f"the layer '{leaf.name}' of '{name}' must be followed by a ReLU, as in every VGG"
                )
        if leaf.kind not in ("Conv2D", "MaxPooling2D") and not _is_relu(leaf):
            raise CheckpointError(
                f"'{name}' has a layer '{leaf.name}' ({leaf.kind}) that no VGG of Keras's has"
            )


def _refuse_unusual(leaf: Leaf, usual: dict[str, Any], name: str) -> None:
    config = leaf.config or {}
    if config.get("data_format") == "channels_first":
        raise CheckpointError(f"'{name}' was made for channels_first; save it from a model of channels_last")
    for argument, wanted in usual.items():
        value = config.get(argument, wanted)
        value = tuple(value) if isinstance(value, list) else value
        if value != wanted:
            raise CheckpointError(
                f"the layer '{leaf.name}' of '{name}' has {argument} {value}, which cannot be served; only {wanted} can"
            )


def _activation_of(leaf: Leaf) -> str:
    value = (leaf.config or {}).get("activation", "linear")
    return str(value.get("config") if isinstance(value, dict) else value or "linear")


def _is_relu(leaf: Leaf) -> bool:
    return leaf.kind == "ReLU" or (leaf.kind == "Activation" and _activation_of(leaf) == "relu")


def _densenet(body: list[Leaf], kernels: list[Any], complete: bool, name: str) -> DenseNetConfig:
    try:
        stem, *others = kernels
        growth, bottleneck = others[1].shape[3], others[0].shape[3]
        blocks, transitions = [0], []
        position = 0
        while position < len(others):
            if position + 1 < len(others) and others[position + 1].shape[:2] == (3, 3):
                blocks[-1] += 1
                position += 2
            else:
                transitions.append((others[position].shape[3], others[position].shape[2]))
                blocks.append(0)
                position += 1
        if stem.shape[:2] != (7, 7) or bottleneck % growth:
            raise ValueError("its stem or its layers have other shapes")
        configuration = DenseNetConfig(
            blocks=tuple(blocks),
            growth_rate=growth,
            stem_width=stem.shape[3],
            bottleneck=bottleneck // growth,
            compression=compression(transitions),
            channels=stem.shape[2],
            num_classes=0,
            # keras.applications pads by layers of its own, KerasHub by "same".
            padding="symmetric"
            if any(leaf.kind == "ZeroPadding2D" for leaf in body) or not complete
            else "same",
            epsilon=EPSILON,
        )
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"'{name}' is no whole DenseNet: {error}") from error
    if complete:
        configuration = replace(configuration, epsilon=_epsilon(body, name))
        _check_densenet(body, configuration, name)
    return configuration


def _epsilon(body: list[Leaf], name: str) -> float:
    found = {
        float((leaf.config or {}).get("epsilon", 1e-3)) for leaf in body if leaf.kind == "BatchNormalization"
    }
    if len(found) != 1:
        raise CheckpointError(f"the batch norms of '{name}' have several epsilons; a DenseNet has one")
    return found.pop()


def _check_densenet(body: list[Leaf], configuration: DenseNetConfig, name: str) -> None:
    """Compares the layers' classes with the order of keras.applications."""
    relu = ["BatchNormalization", "Activation"]
    layer = [*relu, "Conv2D", *relu, "Conv2D", "Concatenate"]
    wanted = ["ZeroPadding2D", "Conv2D", *relu, "ZeroPadding2D", "MaxPooling2D"]
    for number, count in enumerate(configuration.blocks):
        wanted += layer * count
        wanted += [*relu, "Conv2D", "AveragePooling2D"] if number + 1 < len(configuration.blocks) else relu
    kinds = ["Activation" if leaf.kind == "ReLU" else leaf.kind for leaf in body]
    for leaf, kind, other in zip(body, kinds, wanted, strict=False):
        if kind != other or (kind == "Activation" and not _is_relu(leaf)):
            raise CheckpointError(
                f"'{name}' has a layer '{leaf.name}' ({leaf.kind}) in another place than keras.applications' DenseNets"
            )
        _refuse_unusual(leaf, {}, name)
    if len(kinds) != len(wanted):
        raise CheckpointError(
            f"'{name}' has {len(kinds)} layers where a DenseNet of its shapes has {len(wanted)}"
        )
