"""Folding: which batch norms go, and that the answers stay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from service.models.checkpoints import resolve
from service.models.loader import Uint8Model, load
from service.models.runtimes.eager import fold_batch_norms


def shaken(name: str) -> Uint8Model:
    """A variant whose batch norms do something: untrained ones are the identity."""
    model = load(resolve("random:3", name))
    chance = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.8, 1.2),
                (module.bias, -0.1, 0.1),
                (module.running_mean, -0.1, 0.1),
                (module.running_var, 0.8, 1.2),
            ):
                assert tensor is not None
                tensor.copy_(torch.empty_like(tensor).uniform_(low, high, generator=chance))
    return model


@pytest.mark.parametrize(("name", "folded", "left"), [("vgg11_bn", 8, 0), ("densenet121", 59, 62)])
def test_folded_answers_are_the_unfolded_ones(name: str, folded: int, left: int) -> None:
    model = shaken(name)
    pixels = torch.randint(
        0, 256, (1, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    with torch.inference_mode():
        expected = model(pixels).softmax(1)
        assert fold_batch_norms(model) == folded
        assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == left
        assert (model(pixels).softmax(1) - expected).abs().max() < 1e-5
