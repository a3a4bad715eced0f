"""Memory of the pipeline: what all batches share, and what each one in flight has for itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from service.models.cuda.device import Device

#: Launches of one batch at most that carry a canary: its parts after an out-of-memory, and one of the canary's own.
MOST_CANARIES = 512


@dataclass(frozen=True)
class Shapes:
    """Of one image. ``features`` is ``(C, h, w)``, ``answer`` the number of logits.

    On the device and on their way features are ``[h, w, C]``, as every network makes them: turned they are by the
    host, for who asks.
    """

    image: tuple[int, int, int]
    features: tuple[int, int, int]
    answer: int
    dtype: torch.dtype

    @property
    def laid_out(self) -> tuple[int, int, int]:
        """The features' sizes in the order of memory."""
        channels, height, width = self.features
        return height, width, channels


class Shared:
    """What the captured graphs read and write, always at the same place; only the compute stream touches it."""

    def __init__(self, device: Device, shapes: Shapes, rows: int) -> None:
        self.rows = rows
        self.pixels = device.empty((rows, *shapes.image), torch.uint8)
        self.features = device.empty((rows, *shapes.laid_out), shapes.dtype)
        self.answers = device.empty((rows, shapes.answer), torch.float32)


class BatchBuffers:
    """Memory for one batch's pixels and answers, on the device and on the host. A batch has it from start to finish."""

    def __init__(self, device: Device, shapes: Shapes, rows: int) -> None:
        self.pixels = device.empty((rows, *shapes.image), torch.uint8)
        self.features = device.empty((rows, *shapes.laid_out), shapes.dtype)
        self.answers = device.empty((rows, shapes.answer), torch.float32)
        self.canaries = device.empty((MOST_CANARIES, shapes.answer), torch.float32)
        self.staged_pixels = device.staging((rows, *shapes.image), torch.uint8)
        self.host_features = device.staging((rows, *shapes.laid_out), shapes.dtype)
        self.host_answers = device.staging((rows, shapes.answer), torch.float32)
        self.host_canaries = device.staging((MOST_CANARIES, shapes.answer), torch.float32)


def neighbours(slots: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Runs of slots that lie side by side, to be copied as one: (row of the batch, first slot, count)."""
    row = 0
    while row < len(slots):
        count = 1
        while row + count < len(slots) and slots[row + count] == slots[row] + count:
            count += 1
        yield row, slots[row], count
        row += count
