"""The loaded model as one function in any precision: to be compiled, exported, or run unchanged on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from service.models.loader import Uint8Model
from service.models.runtimes.eager import fold_batch_norms

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Whole(nn.Module):
    """A model as one function: uint8 ``[N, H, W, C]`` → features ``[N, C', h, w]`` and logits ``[N, classes]``, in
    ``dtype``.

    Without a head the second result is the features' mean. Normalising is computed in fp32 and rounded once: in half
    precision each of the 256 levels would have an error of its own.
    """

    def __init__(self, model: Uint8Model, dtype: torch.dtype, *, has_head: bool = True) -> None:
        super().__init__()
        self.model = model
        self.model.network.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._dtype, self._has_head = dtype, has_head

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        planes = self.model.normalise(pixels).to(self._dtype, memory_format=torch.channels_last)
        features = self.model.network.forward_features(planes)
        return features, self.model.forward_head(features) if self._has_head else features.mean((2, 3))


def whole(model: Uint8Model, device: torch.device, precision: str, *, has_head: bool) -> Whole:
    """Returns ``model`` as a function, with its batch norms folded where possible. ``model`` must not be used
    afterwards."""
    fold_batch_norms(model)
    network = Whole(model, DTYPES[precision], has_head=has_head).to(device)
    return network.eval().requires_grad_(False)
