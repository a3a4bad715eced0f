"""What torch answers, and that a way of running a model answers the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from service.models import loader
from service.models.checkpoints import Checkpoint

IMAGES = 6


def images(checkpoint: Checkpoint, count: int) -> NDArray[np.uint8]:
    """Random pixels of its size, the same ones each time."""
    return np.random.default_rng(2).integers(0, 256, (count, *checkpoint.preprocessing.shape), np.uint8)


class Answers:
    """Torch's, to `IMAGES` random pictures for ``checkpoint``."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.pixels = images(checkpoint, IMAGES)
        model = loader.load(checkpoint)
        with torch.inference_mode():
            self.features = model.forward_features(torch.from_numpy(self.pixels))
            self.logits = (
                model.forward_head(self.features) if checkpoint.classes else torch.empty((IMAGES, 0))
            )

    def assert_of(self, way: Any, runs: Iterable[list[int]]) -> None:
        """That ``way`` gives them for each list of slots in ``runs``."""
        for slots in runs:
            for slot, answer in zip(slots, way(self.pixels, slots), strict=True):
                np.testing.assert_allclose(answer.features, self.features[slot], rtol=1e-4, atol=1e-4)
                np.testing.assert_allclose(answer.logits, self.logits[slot], rtol=1e-4, atol=1e-4)
