"""torch, layer by layer: the reference that every other runtime is held against, and what always works."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from service.models.loader import Uint8Model
from service.models.runtimes import Answer, Pixels, Way

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Eager:
    """The torch module itself, moved to ``device``. On the CPU its batch norms are folded first.

    ``model`` belongs to this from now on.
    """

    name = "eager"

    def __init__(self, model: Uint8Model, device: str, precision: str, *, has_head: bool = True) -> None:
        self.precision = precision
        if device == "cpu":
            fold_batch_norms(model)
        dtype = _DTYPES[precision]
        moved = model.to(torch.device(device), dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._way = _Together(moved, torch.device(device), has_head)

    def ways(self) -> list[Way]:
        return [self._way]


class _Together:
    """One forward pass for all images."""

    unit: int | None = None

    def __init__(self, model: Uint8Model, device: torch.device, has_head: bool) -> None:
        self._model = model
        self._device = device
        self._has_head = has_head
        self._staging = torch.empty(0, dtype=torch.uint8)

    @torch.inference_mode()
    def __call__(self, pixels: Pixels, slots: Sequence[int]) -> list[Answer]:
        batch = self._stage(pixels, slots).to(self._device, non_blocking=True)
        features = self._model.forward_features(batch)
        logits = torch.empty((len(slots), 0))
        if self._has_head:
            logits = self._model.forward_head(features).float().cpu()
        return [Answer(*row) for row in zip(features, logits, strict=True)]

    def _stage(self, pixels: Pixels, slots: Sequence[int]) -> Tensor:
        """The batch in memory that the device can read at full speed: pinned for CUDA."""
        if self._staging.shape[0] < len(slots) or self._staging.shape[1:] != pixels.shape[1:]:
            shape = (len(slots), *pixels.shape[1:])
            self._staging = torch.empty(shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        staged = self._staging.numpy()
        for row, slot in enumerate(slots):
            staged[row] = pixels[slot]
        return self._staging[: len(slots)]


def fold_batch_norms(model: nn.Module) -> int:
    """Folds each batch norm into the convolution right before it, in place, and returns how many there were.

    ``y = (w * x) * s + b`` is a convolution again, with weights ``w * s``: all norms of a VGG with them, and of
    a DenseNet those of the stem and ``conv1 → norm2`` of each layer. Its other norms see a concatenation, with
    a ReLU before the next convolution, and stay. Answers then differ from the unfolded network's by rounding.

    Modules that follow each other in the same parent must run in that order; they do in every network here.
    """
    folded = 0
    for parent in list(model.modules()):
        children = list(parent.named_children())
        for (first, convolution), (second, norm) in pairwise(children):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, first, fuse_conv_bn_eval(convolution, norm))
                setattr(parent, second, nn.Identity())
                folded += 1
    return folded
