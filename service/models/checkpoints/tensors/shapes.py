"""Derives configurations from the shapes of a state dict."""

from __future__ import annotations

import re

from torch import Tensor

from service.errors import CheckpointError
from service.models.configuration import Configuration, DenseNetConfig, VGGConfig

StateDict = dict[str, Tensor]


def body(state_dict: StateDict, name: str) -> Configuration:
    """Returns the configuration, without a head, whose ``features`` have these shapes under torchvision's names.

    What shapes cannot tell is taken from torchvision: strides, padding, the pool of DenseNet's stem. Raises
    `CheckpointError` if the tensors are of neither family.
    """
    try:
        if "features.conv0.weight" in state_dict:
            return _densenet(state_dict)
        return _vgg(state_dict)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"'{name}' is not a whole VGG or DenseNet: {_what_lacks(error)}") from error


def _vgg(state_dict: StateDict) -> VGGConfig:
    batch_norm = bool(_numbered(state_dict, "running_mean", dimensions=1))
    stages = _stages(state_dict, batch_norm)
    first = min(_numbered(state_dict, "weight", dimensions=4).items())
    if first[0] != 0:
        raise KeyError("features.0.weight")
    return VGGConfig(stages=stages, batch_norm=batch_norm, channels=first[1].shape[1], num_classes=0)


def _stages(state_dict: StateDict, batch_norm: bool) -> tuple[tuple[int, ...], ...]:
    convolutions = _numbered(state_dict, "weight", dimensions=4)
    # A convolution, its norm and its ReLU take two or three numbers; each further number is a max-pool.
    step = 3 if batch_norm else 2
    stages: list[tuple[int, ...]] = [()]
    indices = sorted(convolutions)
    for index, following in zip(indices, [*indices[1:], indices[-1] + step], strict=True):
        stages[-1] = (*stages[-1], len(convolutions[index]))
        stages += [()] * (following - index - step)
    return tuple(stages)


def _densenet(state_dict: StateDict) -> DenseNetConfig:
    if any(tensor.ndim != 4 for key, tensor in state_dict.items() if re.search(r"conv\d?\.weight$", key)):
        raise ValueError("one of its convolutions has no 4-d kernel")
    stem_layers = 3 if "features.conv2.weight" in state_dict else 1
    stem = [state_dict[f"features.conv{number}.weight"] for number in range(stem_layers)]
    growth_rate = len(state_dict["features.denseblock1.denselayer1.conv2.weight"])
    blocks = _blocks(state_dict)
    transitions = [state_dict[f"features.transition{number}.conv.weight"] for number in range(1, len(blocks))]
    return DenseNetConfig(
        blocks=blocks,
        growth_rate=growth_rate,
        stem_width=len(stem[-1]),
        stem_kernel=_stem_kernel(stem),
        deep_stem=(len(stem[0]), len(stem[1])) if len(stem) == 3 else None,
        bottleneck=len(state_dict["features.denseblock1.denselayer1.conv1.weight"]) // growth_rate,
        compression=compression([(len(weight), weight.shape[1]) for weight in transitions]),
        channels=stem[0].shape[1],
        num_classes=0,
    )


def _stem_kernel(stem: list[Tensor]) -> int:
    kernel = stem[0].shape[2]
    if kernel != (3 if len(stem) == 3 else 7):
        raise ValueError(
            f"its stem is a {kernel}x{kernel} convolution, and shapes do not say how it strides and pools; "
            "give a checkpoint directory, whose config.json does"
        )
    return kernel


def _blocks(state_dict: StateDict) -> tuple[int, ...]:
    layers: dict[int, int] = {}
    for key in state_dict:
        if match := re.match(r"features\.denseblock(\d+)\.denselayer(\d+)\.", key):
            block, layer = int(match[1]), int(match[2])
            layers[block] = max(layers.get(block, 0), layer)
    return tuple(layers[block] for block in range(1, len(layers) + 1))


def compression(transitions: list[tuple[int, int]]) -> float:
    """Returns the roundest ratio for which every transition keeps ``int(width * ratio)`` of its channels."""
    for digits in range(1, 6):
        for kept, width in transitions:
            for ratio in (round(kept / width, digits), round((kept + 0.5) / width, digits)):
                if all(int(wide * ratio) == narrow for narrow, wide in transitions):
                    return ratio
    if transitions:
        raise ValueError("its transitions share no compression ratio")
    return 0.5


def _numbered(state_dict: StateDict, part: str, *, dimensions: int) -> dict[int, Tensor]:
    matches = ((re.fullmatch(rf"features\.(\d+)\.{part}", key), tensor) for key, tensor in state_dict.items())
    return {int(match[1]): tensor for match, tensor in matches if match and tensor.ndim == dimensions}


def _what_lacks(error: Exception) -> str:
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)
