"""Memory of the pipeline: shared by all batches, and owned by each batch in flight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from service.models.cuda.device import Device

#: Most launches of one batch that carry a canary: its parts after an out-of-memory, and one launch with the canary
#: alone.
MAX_CANARIES = 512


@dataclass(frozen=True)
class Shapes:
    """Shapes of one image's data. ``features`` is ``(C, h, w)``, ``answer`` the number of logits.

    On the device and in transfer, features are ``[h, w, C]``, as every network makes them; the host transposes them
    if they are wanted.
    """

    image: tuple[int, int, int]
    features: tuple[int, int, int]
    answer: int
    dtype: torch.dtype

    @property
    def laid_out(self) -> tuple[int, int, int]:
        """The features' shape in the order of memory."""
        channels, height, width = self.features
        return height, width, channels


class Shared:
    """Memory that the captured graphs read and write, always at the same address; only the compute stream touches
    it."""

    def __init__(self, device: Device, shapes: Shapes, rows: int) -> None:
        self.rows = rows
        self.pixels = device.empty((rows, *shapes.image), torch.uint8)
        self.features = device.empty((rows, *shapes.laid_out), shapes.dtype)
        self.answers = device.empty((rows, shapes.answer), torch.float32)


class BatchBuffers:
    """Memory for one batch's pixels and answers, on the device and on the host, from the batch's start to its
    finish."""

    def __init__(self, device: Device, shapes: Shapes, rows: int) -> None:
        self.pixels = device.empty((rows, *shapes.image), torch.uint8)
        self.features = device.empty((rows, *shapes.laid_out), shapes.dtype)
        self.answers = device.empty((rows, shapes.answer), torch.float32)
        self.canaries = device.empty((MAX_CANARIES, shapes.answer), torch.float32)
        self.staged_pixels = device.staging((rows, *shapes.image), torch.uint8)
        self.host_features = device.staging((rows, *shapes.laid_out), shapes.dtype)
        self.host_answers = device.staging((rows, shapes.answer), torch.float32)
        self.host_canaries = device.staging((MAX_CANARIES, shapes.answer), torch.float32)


def neighbours(slots: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yields runs of adjacent slots, each to be copied at once: (row of the batch, first slot, count)."""
    row = 0
    while row < len(slots):
        count = 1
        while row + count < len(slots) and slots[row + count] == slots[row] + count:
            count += 1
        yield row, slots[row], count
        row += count
