"""Compiled models on the CPU, as runtimes: ``runtime=compile``, and a directory that `imagenet-serve export` made."""

from __future__ import annotations

from collections.abc import Callable

import torch

from service.models.checkpoints import Checkpoint
from service.models.loader import Uint8Model
from service.models.placement import Placement
from service.models.runtimes import package
from service.models.runtimes.compiled import compiled
from service.models.runtimes.eager import SingleExecutor
from service.models.runtimes.whole import whole

_CPU = torch.device("cpu")


def load(
    model: Uint8Model, checkpoint: Checkpoint, placement: Placement, report: Callable[[str], object]
) -> SingleExecutor:
    """Loads or compiles the model. Raises `ConfigurationError` if this host cannot, or the artifact is another
    model's."""
    has_head = checkpoint.classes is not None
    if placement.artifact is not None:
        found = package.open_artifact(placement.artifact, checkpoint, _CPU)
        return SingleExecutor(
            "package", found.precision, found.forward, found.max_batch_size, has_head=has_head
        )
    report("compiling the model; the next start finds the kernels in the cache")
    network = whole(model, _CPU, placement.precision, has_head=has_head)
    forward = compiled(network, checkpoint.preprocessing.shape, _CPU)
    return SingleExecutor("compile", placement.precision, forward, None, has_head=has_head)
