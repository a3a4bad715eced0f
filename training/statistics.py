"""Batch norms' statistics from whole images: what the service shows, and crops at another size do not have."""

from __future__ import annotations

import copy

import torch
from torch import nn

from training.augment import normalise, resize
from training.data import Images

#: Evenly spread over the training images; so many are in one batch.
_IMAGES, _BATCH = 2000, 250


def renewed(network: nn.Module, images: Images, side: int) -> nn.Module:
    """A copy in evaluation mode whose batch norms have the mean and variance of whole ``images`` at ``side`` pixels.

    An average of weights needs that even at one size: its layers' outputs are not the average of theirs
    (Izmailov et al., arXiv:1803.05407).
    """
    result = copy.deepcopy(network).eval()
    for module in result.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the plain mean over batches
            module.train()
    rows = torch.arange(0, len(images), max(1, len(images) // _IMAGES))[:_IMAGES]
    with torch.no_grad():
        for batch in rows.split(_BATCH):
            pixels = normalise(resize(images.pixels[batch], side))
            result(pixels.contiguous(memory_format=torch.channels_last))
    return result.eval()
