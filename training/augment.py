"""Augments a whole batch at once, on the device that holds it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from service.preprocess import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class Crop:
    """Random resized crop (Szegedy et al., arXiv:1409.4842): range of the area's share, range of the aspect ratio."""

    area: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)


def normalise(pixels: Tensor) -> Tensor:
    """Returns float32 ``[N, 3, H, W]`` of uint8 or float pixels in 0..255, normalised as in the service."""
    mean = torch.tensor(IMAGENET_MEAN, device=pixels.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(IMAGENET_STD, device=pixels.device).view(1, 3, 1, 1) * 255
    return (pixels.float() - mean) / std


def resize(pixels: Tensor, side: int) -> Tensor:
    """Resizes uint8 ``[N, 3, H, W]`` to float32 ``[N, 3, side, side]`` in 0..255, bilinear and antialiased."""
    if pixels.shape[-1] == side:
        return pixels.float()
    return F.interpolate(pixels.float(), (side, side), mode="bilinear", antialias=True, align_corners=False)


def random_crops(pixels: Tensor, side: int, crop: Crop, generator: torch.Generator) -> Tensor:
    """Cuts a random part of every image and mirrors half of them: ``[N, 3, H, W]`` → float32 ``[N, 3, side, side]``.

    One `grid_sample` serves the batch, since every image has its own box. It samples bilinearly without a filter, so
    ``pixels`` should not be much larger than ``side``: pass a copy that was scaled down.
    """
    number, device = len(pixels), pixels.device
    uniform = torch.rand((5, number), generator=generator, device=device)
    area = crop.area[0] + (crop.area[1] - crop.area[0]) * uniform[0]
    low, high = (math.log(bound) for bound in crop.ratio)
    ratio = torch.exp(low + (high - low) * uniform[1])
    width = torch.sqrt(area * ratio).clamp(max=1.0)
    height = torch.sqrt(area / ratio).clamp(max=1.0)
    mirrored = torch.where(uniform[4] < 0.5, -1.0, 1.0)
    theta = torch.zeros((number, 2, 3), device=device)
    theta[:, 0, 0] = width * mirrored
    theta[:, 0, 2] = (1 - width) * (2 * uniform[2] - 1)
    theta[:, 1, 1] = height
    theta[:, 1, 2] = (1 - height) * (2 * uniform[3] - 1)
    grid = F.affine_grid(theta, [number, 3, side, side], align_corners=False)
    return F.grid_sample(
        pixels.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
