"""Holding a loaded checkpoint against what its original library computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from service.models.loader import Uint8Model

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"

Array = npt.NDArray[Any]


def assert_close(actual: Any, expected: Array) -> None:
    """Within 2e-5 x max(1, |expected|), the tolerance of issue 6."""
    actual = np.asarray(actual)
    assert actual.shape == expected.shape
    worst = np.max(np.abs(actual - expected) / np.maximum(1, np.abs(expected)), initial=0)
    assert worst <= 2e-5, f"off by {worst}"


def channels_first(array: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def outputs(model: Uint8Model, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and logits for float inputs ``[N, C, H, W]`` that are normalised already."""
    with torch.inference_mode():
        features = model.network.forward_features(inputs)
        return features, model.network.forward_head(features)
