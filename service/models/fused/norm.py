"""A batch norm in the form that the fused operations take."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Norm(nn.Module):
    """An evaluated batch norm as ``x * scale + shift``, fp32 ``[C]`` whatever the network's precision."""

    scale: Tensor
    shift: Tensor
    zero: Tensor
    one: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        shift = norm.bias.double() - norm.running_mean.double() * scale
        self.register_buffer("scale", scale.float())
        self.register_buffer("shift", shift.float())
        # A mean and a variance without effect, for torch's own batch norm, made once.
        self.register_buffer("zero", torch.zeros_like(self.scale))
        self.register_buffer("one", torch.ones_like(self.scale))
