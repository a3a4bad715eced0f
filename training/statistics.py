"""Recomputes batch norms' statistics from whole images, which the service shows and crops do not match."""

from __future__ import annotations

import copy

import torch
from torch import nn

from training.augment import normalise, resize
from training.data import Images

#: Number of images, evenly spread over the training set, and images in one batch.
_IMAGES, _BATCH = 2000, 250


def renewed(network: nn.Module, images: Images, side: int) -> nn.Module:
    """Returns a copy in evaluation mode whose batch norms have the statistics of whole ``images`` at ``side``
    pixels.

    An average of weights needs this even at one size: its layers' outputs are not the average of the others' outputs
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
