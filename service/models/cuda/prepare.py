"""Prepares a program: one step for each bucket, captured if possible, and each checked against the network."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
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
    """The canaries' answers ``[images, length]`` when the step was made, by bucket."""


class GraphBuilder:
    """Prepares programs on a device by its compute ``stream``. ``pixels`` are the canaries', uint8 ``[images, H, W,
    C]``."""

    def __init__(self, device: Device, stream: Stream, pixels: Pixels) -> None:
        self._device, self._stream = device, stream
        self.canaries = [device.empty(image.shape, torch.uint8) for image in pixels]
        """The canaries on the device."""
        for there, image in zip(self.canaries, pixels, strict=True):
            stream.copy(there, torch.from_numpy(image))

    def probe_shapes(self, program: Program) -> Shapes:
        """Returns the shapes of the results, by running one image through ``program``."""
        found: list[Tensor] = []
        self._stream.run(lambda: found.extend(program.forward(self.canaries[0][None])))
        self._stream.record().wait()
        features, answers = found
        height, width, channels = self.canaries[0].shape
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
            references[bucket] = self._references(program, shared, bucket, steps[bucket])
        return Prepared(shared, made, dict(sorted(steps.items())), references)

    def _step(self, program: Program, shared: Shared, bucket: int) -> Work:
        """Makes a forward pass of ``bucket`` rows."""
        work: Work = partial(_forward, program, shared, bucket)
        self._show(shared, range(bucket))
        # Twice: libraries choose their kernel in the first run and allocate its memory in the second.
        for _ in range(2):
            self._stream.run(work)
        self._stream.record().wait()
        return self._device.capture(work, self._stream) if program.graphs else work

    def _show(self, shared: Shared, turns: Sequence[int]) -> list[int]:
        """Puts canaries into the rows, one after the other from the first of ``turns`` on. Returns which."""
        images = [turn % len(self.canaries) for turn in turns]
        for row, image in enumerate(images):
            self._stream.copy(shared.pixels[row], self.canaries[image])
        return images

    def _references(self, program: Program, shared: Shared, bucket: int, step: Work) -> canary.Logits:
        """Returns the step's answers to the canaries; each of them is in every row once."""
        host = self._device.staging((bucket, shared.answers.shape[1]), torch.float32)
        found: dict[int, canary.Logits] = {}
        for first in range(len(self.canaries)):
            images = self._show(shared, range(first, first + bucket))
            self._stream.run(step)
            self._stream.copy(host, shared.answers[:bucket])
            self._stream.record().wait()
            for image, answer in zip(images, host.numpy(), strict=True):
                _refuse_untrusted(program, bucket, image, answer, found.setdefault(image, answer.copy()))
        return np.stack([found[image] for image in range(len(self.canaries))])


def _forward(program: Program, shared: Shared, bucket: int) -> None:
    features, answers = program.forward(shared.pixels[:bucket])
    shared.features[:bucket].copy_(features.permute(0, 2, 3, 1))
    shared.answers[:bucket].copy_(answers.flatten(1))


def _refuse_untrusted(
    program: Program, bucket: int, image: int, answer: NDArray[np.float32], reference: canary.Logits
) -> None:
    """Raises `canary.UntrustedError` if the answer to a canary is wrong, or not the ``reference`` of another row."""
    right = None if program.expected is None else program.expected[image]
    if right is not None and not canary.is_right(answer, right, program.precision):
        raise canary.UntrustedError(
            f"runtime={program.name} in {program.precision} at {bucket} images is off the network's answer by "
            f"{canary.distance(answer, right):.2g}; use runtime=eager"
        )
    if not canary.is_same(answer, reference, program.precision):
        raise canary.UntrustedError(
            f"runtime={program.name}: the rows of a batch of {bucket} influence each other; use runtime=eager"
        )
