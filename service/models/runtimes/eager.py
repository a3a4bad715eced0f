"""torch, layer by layer: the reference for every other runtime, and the one that always works."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from service.models.loader import Uint8Model
from service.models.runtimes import Answer, Executor, Gather, Pixels

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class SingleExecutor:
    """A function on the CPU as a runtime, for at most ``max_batch_size`` images at once: see `BatchExecutor`."""

    def __init__(
        self, name: str, precision: str, forward: Forward, max_batch_size: int | None, *, has_head: bool
    ) -> None:
        self.name, self.precision, self.max_batch_size = name, precision, max_batch_size
        self._executor = BatchExecutor(forward, has_head=has_head)

    def executors(self) -> list[Executor]:
        return [self._executor]

    def another(self) -> None:
        return None

    def settle(self, names: Sequence[str]) -> bool:
        """Does nothing: there is one executor."""
        return False


class Eager(SingleExecutor):
    """The torch module itself on the CPU, with folded batch norms. (CUDA has `service.models.cuda`.)

    ``model`` must not be used afterwards.
    """

    def __init__(self, model: Uint8Model, precision: str, *, has_head: bool = True) -> None:
        fold_batch_norms(model)
        moved = model.to(_DTYPES[precision]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

        def forward(pixels: Tensor) -> tuple[Tensor, Tensor]:
            features = moved.forward_features(pixels)
            return features, moved.forward_head(features) if has_head else features

        super().__init__("eager", precision, forward, None, has_head=has_head)


class BatchExecutor:
    """Runs one forward pass for all images, by a function of uint8 ``[N, H, W, C]`` on the CPU.

    The function returns features and logits; without a head its logits are ignored.
    """

    name = "together"
    parallelism: int | None = None

    def __init__(self, forward: Forward, *, has_head: bool) -> None:
        self._forward, self._has_head = forward, has_head
        self._gather = Gather()

    @torch.inference_mode()
    def __call__(self, pixels: Pixels, slots: Sequence[int]) -> list[Answer]:
        batch = torch.from_numpy(self._gather(pixels, slots))
        features, logits = self._forward(batch)
        if not self._has_head:
            logits = torch.empty((len(slots), 0))
        return [Answer(*row) for row in zip(features.float().numpy(), logits.float().numpy(), strict=True)]


def fold_batch_norms(model: nn.Module) -> int:
    """Folds each batch norm into the convolution directly before it, in place, and returns their number.

    ``y = (w * x) * s + b`` is a convolution with weights ``w * s``. This folds all norms of a VGG; of a DenseNet,
    those of the stem and ``conv1 → norm2`` of each layer. A DenseNet's other norms follow a concatenation and
    precede a ReLU, so they stay. The answers differ from the unfolded network's by rounding.

    Neighbouring modules of a parent must run in that order, as they do in every network here.
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
