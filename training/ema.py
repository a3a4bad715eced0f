"""An exponential moving average of a network, including its batch-norm statistics."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Average:
    """Averages a trained network. ``network`` is the average, always in evaluation mode.

    Running means and variances are averaged like the weights, since they belong together. The decay is smaller in
    the first steps, so that the random initialisation is soon forgotten.
    """

    def __init__(self, trained: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(trained).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, trained: nn.Module, step: int) -> None:
        """Moves the average towards the network after step number ``step`` (from 0)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        averages, values = _floats(self.network), _floats(trained)
        torch._foreach_lerp_(averages, values, 1 - decay)


def _floats(network: nn.Module) -> list[Tensor]:
    """Returns parameters and floating-point buffers, so not `num_batches_tracked`."""
    return [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
