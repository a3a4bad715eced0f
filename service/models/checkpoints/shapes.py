"""Configurations read off tensors: the shapes of a state dict say nearly everything about its network."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor

from service.errors import CheckpointError
from service.models.configuration import Configuration, DenseNetConfig, VGGConfig

#: timm's names for the head of a VGG, whose first two layers are convolutions there.
_TIMM_HEAD = {"pre_logits.fc1": "classifier.0", "pre_logits.fc2": "classifier.3", "head.fc": "classifier.6"}

StateDict = dict[str, Tensor]


def infer(state_dict: StateDict, name: str) -> tuple[Configuration, StateDict]:
    """The configuration whose parameters have these shapes, and the tensors under torchvision's names.

    Names may be torchvision's or timm's; with timm's come timm's head and stem. What shapes cannot say is
    taken to be as in torchvision: strides, padding, where DenseNet's stem pools. A head without a last layer
    is none. Raises `CheckpointError` when the tensors are of neither family.
    """
    try:
        if "features.conv0.weight" in state_dict:
            return _densenet(state_dict), state_dict
        if "features.0.weight" in state_dict:
            return _vgg(state_dict)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"'{name}' is not a whole VGG or DenseNet: {_what_lacks(error)}") from error
    raise CheckpointError(f"'{name}' holds neither a VGG nor a DenseNet; only these two families are served")


def _vgg(state_dict: StateDict) -> tuple[VGGConfig, StateDict]:
    timm = "pre_logits.fc1.weight" in state_dict
    state_dict = _with_torchvisions_head(state_dict) if timm else state_dict
    batch_norm = bool(_numbered(state_dict, "running_mean", dimensions=1))
    configuration = VGGConfig(
        stages=_stages(state_dict, batch_norm),
        batch_norm=batch_norm,
        channels=state_dict["features.0.weight"].shape[1],
        head="sliding" if timm else "adaptive",
        num_classes=0,
    )
    if "classifier.6.weight" not in state_dict:
        return configuration, {key: state_dict[key] for key in state_dict if key.startswith("features.")}
    first, hidden, classes = (len(state_dict[f"classifier.{number}.weight"]) for number in (0, 3, 6))
    other_first = None if first == hidden else first
    return replace(configuration, num_classes=classes, hidden=hidden, hidden_first=other_first), state_dict


def _with_torchvisions_head(state_dict: StateDict) -> StateDict:
    renamed: StateDict = {}
    for key, tensor in state_dict.items():
        layer, _, part = key.rpartition(".")
        flat = tensor.flatten(1) if layer in _TIMM_HEAD and part == "weight" else tensor
        renamed[f"{_TIMM_HEAD.get(layer, layer)}.{part}"] = flat
    return renamed


def _stages(state_dict: StateDict, batch_norm: bool) -> tuple[tuple[int, ...], ...]:
    convolutions = _numbered(state_dict, "weight", dimensions=4)
    # A convolution, its norm and its ReLU take two or three places; what lies between beyond is max-pools.
    step = 3 if batch_norm else 2
    stages: list[tuple[int, ...]] = [()]
    indices = sorted(convolutions)
    for index, following in zip(indices, [*indices[1:], indices[-1] + step], strict=True):
        stages[-1] = (*stages[-1], len(convolutions[index]))
        stages += [()] * (following - index - step)
    return tuple(stages)


def _densenet(state_dict: StateDict) -> DenseNetConfig:
    stem = [state_dict[f"features.conv{number}.weight"] for number in _stem_layers(state_dict)]
    growth_rate = len(state_dict["features.denseblock1.denselayer1.conv2.weight"])
    blocks = _blocks(state_dict)
    transitions = [state_dict[f"features.transition{number}.conv.weight"] for number in range(1, len(blocks))]
    head = state_dict.get("classifier.weight", torch.empty(0))
    return DenseNetConfig(
        blocks=blocks,
        growth_rate=growth_rate,
        stem_width=len(stem[-1]),
        stem_kernel=_stem_kernel(stem),
        deep_stem=(len(stem[0]), len(stem[1])) if len(stem) == 3 else None,
        bottleneck=len(state_dict["features.denseblock1.denselayer1.conv1.weight"]) // growth_rate,
        compression=_compression([(len(weight), weight.shape[1]) for weight in transitions]),
        channels=stem[0].shape[1],
        num_classes=len(head),
    )


def _stem_layers(state_dict: StateDict) -> range:
    return range(3 if "features.conv2.weight" in state_dict else 1)


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


def _compression(transitions: list[tuple[int, int]]) -> float:
    """The roundest ratio for which every transition keeps ``int(width * ratio)`` of its channels."""
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
