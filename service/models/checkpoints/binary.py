"""Turns a head of one logit that tells two classes apart into a head of two logits.

sigmoid(z) = softmax(0, z)[1], so the first class gets a row of zeros, and its probability is 1 - sigmoid(z).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from service.models.checkpoints.checkpoint import Checkpoint
from service.models.configuration import Configuration
from service.models.head import Linear, key
from service.models.named_heads import layers_of


def with_both_classes(checkpoint: Checkpoint) -> Checkpoint:
    """Returns the checkpoint with two logits and the same answers, if it has one logit and two class names.

    Any other checkpoint is returned unchanged; if its head does not end in a dense layer, it keeps the second name
    only.
    """
    configuration, classes = checkpoint.configuration, checkpoint.classes
    if configuration.num_classes != 1 or classes is None or len(classes) != 2:
        return checkpoint
    last = layers_of(configuration)[-1]
    if not isinstance(last, Linear):
        return replace(checkpoint, classes=classes[1:])
    tensors = dict(checkpoint.state_dict)
    for part in ("weight", "bias"):
        if (name := key(last) + part) in tensors:
            tensors[name] = torch.cat([torch.zeros_like(tensors[name]), tensors[name]])
    return replace(
        checkpoint, configuration=_of_two(configuration, last), state_dict=tensors, activation="softmax"
    )


def _of_two(configuration: Configuration, last: Linear) -> Configuration:
    layers = configuration.layers and (*configuration.layers[:-1], replace(last, outputs=2))
    return replace(configuration, num_classes=2, layers=layers)
