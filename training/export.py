"""Exports the trained network as a checkpoint directory for the service.

The format is that of `service.models.checkpoints.directory`. ``config.json`` has an additional entry "training",
which tells people how the weights were made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from service.cli.evaluate.temperature import folded
from service.labels import ClassLabel, imagenet_classes
from service.models.checkpoints import Checkpoint, write
from service.models.configuration import DenseNetConfig
from service.preprocess import Preprocessing
from training.data import SIDE


def export(
    directory: Path,
    network: DenseNetConfig,
    weights: Mapping[str, Tensor],
    wnids: tuple[str, ...],
    training: Mapping[str, Any],
    *,
    temperature: float = 1.0,
) -> None:
    """Writes ``weights`` of ``network``, whose logits stand for ``wnids``, with ``temperature`` folded into the last
    layer.

    ``training`` is any JSON.
    """
    checkpoint = Checkpoint(
        configuration=network,
        state_dict=dict(weights),
        preprocessing=preprocessing(),
        classes=tuple(_class_of(wnid) for wnid in wnids),
        activation="softmax",
        name="demo",
        source="trained here",
        sha256=None,
    )
    scaled = folded(checkpoint, temperature)
    write(replace(scaled, state_dict=half(scaled.state_dict)), directory, notes={"training": dict(training)})


def half(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns floating-point tensors as float16 on the CPU, and integers unchanged.

    The loader converts them to float32 again, so half precision costs rounding and no speed.
    """
    return {
        name: tensor.detach().to("cpu", torch.float16 if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in weights.items()
    }


def preprocessing() -> Preprocessing:
    """Returns the demo model's preprocessing: the whole photo, padded to a square, resized with antialiasing.

    Tiny-ImageNet's images are whole photos made small. A centre crop, usual for torchvision's networks, would show
    objects larger than this network knows them. README.md compares both on val/ and on photos.
    """
    return Preprocessing(crop=(SIDE, SIDE), fit="pad-resize")


def _class_of(wnid: str) -> ClassLabel:
    """Returns ImageNet's class of a wnid, with its index in ImageNet."""
    for label in imagenet_classes():
        if label.wnid == wnid:
            return label
    raise ValueError(f"'{wnid}' is none of ImageNet's classes")
