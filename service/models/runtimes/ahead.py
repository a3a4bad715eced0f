"""Compiled models on the CPU, as runtimes: ``runtime=compile``, and a directory that `imagenet-serve export` made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from service.models.checkpoints import Checkpoint
from service.models.loader import Uint8Model
from service.models.placement import Placement
from service.models.runtimes import Executor, package
from service.models.runtimes.compiled import Forward, compiled
from service.models.runtimes.eager import BatchExecutor
from service.models.runtimes.whole import whole

_CPU = torch.device("cpu")


class Ahead:
    """A compiled function as a runtime, for at most ``max_batch_size`` images at once."""

    def __init__(
        self, name: str, precision: str, forward: Forward, max_batch_size: int | None, has_head: bool
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


def load(
    model: Uint8Model, checkpoint: Checkpoint, placement: Placement, report: Callable[[str], object]
) -> Ahead:
    """Loads or compiles the model. Raises `ConfigurationError` if this host cannot, or the artifact is another
    model's."""
    has_head = checkpoint.classes is not None
    if placement.artifact is not None:
        found = package.open_artifact(placement.artifact, checkpoint, _CPU)
        return Ahead("package", found.precision, found.forward, found.max_batch_size, has_head)
    report("compiling the model; the next start finds the kernels in the cache")
    network = whole(model, _CPU, placement.precision, has_head=has_head)
    forward = compiled(network, checkpoint.preprocessing.shape, _CPU)
    return Ahead("compile", placement.precision, forward, None, has_head)
