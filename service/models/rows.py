"""What a request wants of the model's answer, into its slot's row of results."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from service.models.runtimes import Answer
from service.task import Task


def write(answer: Answer, task: Task, row: NDArray[np.float32]) -> None:
    """What ``task`` wants of an image's answer into its row of results."""
    wanted = answer.logits if task is Task.CLASSIFY else pool(answer.features, task)
    row[: wanted.numel()] = wanted.flatten().float().cpu().numpy()


def pool(features: torch.Tensor, task: Task) -> torch.Tensor:
    """One image's features ``[C, h, w]`` as ``task`` wants them."""
    if task is Task.FEATURES_AVG:
        return features.mean((1, 2))
    if task is Task.FEATURES_MAX:
        return features.amax((1, 2))
    return features
