"""Prepares a program: one step for each bucket, captured if possible, and each checked against the network."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.models import canary
from service.models.cuda.buffers import BatchBuffers, Shapes, Shared
from service.models.cuda.device import Device, Stream, Work
from service.models.cuda.program import Program
from service.models.runtimes import Pixels
from service.shared.buckets import up_to


@dataclass
class Prepared:
    """A prepared program: all that batches need.

    ``steps`` map the shared pixels to the shared answers, by bucket.
    """

    shared: Shared
    free_buffers: deque[BatchBuffers]
    steps: dict[int, Work]
    references: dict[int, canary.Logits]
    """The canary's answer when the step was made, by bucket."""


class GraphBuilder:
    """Prepares programs on a device by its compute ``stream``. ``pixels`` are the canary's, uint8 ``[H, W, C]``."""

    def __init__(self, device: Device, stream: Stream, pixels: Pixels) -> None:
        self._device, self._stream = device, stream
        self.canary = device.empty(pixels.shape, torch.uint8)
        """The canary on the device."""
        stream.copy(self.canary, torch.from_numpy(pixels))

    def probe_shapes(self, program: Program) -> Shapes:
        """Returns the shapes of the results, by running one image through ``program``."""
        found: list[Tensor] = []
        self._stream.run(lambda: found.extend(program.forward(self.canary[None])))
        self._stream.record().wait()
        features, answers = found
        height, width, channels = self.canary.shape
        shape = features.shape
        return Shapes(
            (height, width, channels), (shape[1], shape[2], shape[3]), answers[0].numel(), features.dtype
        )

    def prepare(self, program: Program, shapes: Shapes, largest: int, in_flight: int) -> Prepared:
        """Prepares memory and steps for batches of up to ``largest`` images, ``in_flight`` of them at once.

        Raises errors that `Device.out_of_memory` recognises, and `service.models.canary.UntrustedError`.
        """
        shared = Shared(self._device, shapes, largest)
        made = deque(BatchBuffers(self._device, shapes, largest) for _ in range(in_flight))
        steps: dict[int, Work] = {}
        references: dict[int, canary.Logits] = {}
        # The largest comes first: the others fit into the memory that it took.
        for bucket in reversed(up_to(largest)):
            steps[bucket] = self._step(program, shared, bucket)
            references[bucket] = self._reference(program, shared, bucket)
        return Prepared(shared, made, dict(sorted(steps.items())), references)

    def _step(self, program: Program, shared: Shared, bucket: int) -> Work:
        """Makes a forward pass of ``bucket`` rows. It leaves the canary in each row, and its answers."""
        work: Work = partial(_forward, program, shared, bucket)
        for row in range(bucket):
            self._stream.copy(shared.pixels[row], self.canary)
        # Twice: libraries choose their kernel in the first run and allocate its memory in the second.
        for _ in range(2):
            self._stream.run(work)
        self._stream.record().wait()
        if program.graphs:
            work = self._device.capture(work, self._stream)
            self._stream.run(work)
        return work

    def _reference(self, program: Program, shared: Shared, bucket: int) -> canary.Logits:
        host = self._device.staging((bucket, shared.answers.shape[1]), torch.float32)
        self._stream.copy(host, shared.answers[:bucket])
        self._stream.record().wait()
        return _trusted(program, bucket, host.numpy())


def _forward(program: Program, shared: Shared, bucket: int) -> None:
    features, answers = program.forward(shared.pixels[:bucket])
    shared.features[:bucket].copy_(features.permute(0, 2, 3, 1))
    shared.answers[:bucket].copy_(answers.flatten(1))


def _trusted(program: Program, bucket: int, answers: NDArray[np.float32]) -> canary.Logits:
    """Returns the canary's answer. Raises `canary.UntrustedError` if it is wrong or differs between rows."""
    reference: canary.Logits = answers[-1].copy()
    if program.expected is not None and not canary.is_right(reference, program.expected, program.precision):
        raise canary.UntrustedError(
            f"runtime={program.name} in {program.precision} at {bucket} images is off the network's answer by "
            f"{canary.distance(reference, program.expected):.2g}; use runtime=eager"
        )
    if not all(canary.is_same(answer, reference, program.precision) for answer in answers):
        raise canary.UntrustedError(
            f"runtime={program.name}: the rows of a batch of {bucket} influence each other; use runtime=eager"
        )
    return reference
