"""The trained network as a checkpoint directory that the service loads like any other.

The format is `service.models.checkpoints.directory`'s; ``config.json`` has one entry more, "training",
which says what the weights come from and is read by people only.
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
    """Write ``weights`` of ``network``, whose logits stand for ``wnids``, with the ``temperature`` in the last layer.

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
    """Floating-point tensors as float16 on the CPU, whole numbers as they are.

    The loader makes float32 of them again, so half precision costs rounding and no speed.
    """
    return {
        name: tensor.detach().to("cpu", torch.float16 if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in weights.items()
    }


def preprocessing() -> Preprocessing:
    """The whole photograph, with black borders where it is not square, and a filter that averages.

    Tiny-ImageNet's pictures are whole photographs made small. A centre crop, as torchvision's networks
    like it, shows this one things larger than it knows them: README.md has both on val/ and on photographs.
    """
    return Preprocessing(crop=(SIDE, SIDE), fit="pad-resize")


def _class_of(wnid: str) -> ClassLabel:
    """ImageNet's class, with its own index there."""
    for label in imagenet_classes():
        if label.wnid == wnid:
            return label
    raise ValueError(f"'{wnid}' is none of ImageNet's classes")
