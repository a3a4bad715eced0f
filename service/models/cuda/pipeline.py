"""Batches through a device that copies, computes and answers at the same time.

    copy stream      slots → lane's pixels          │ next batch's
    compute stream           lane → shared → graph → lane's answers │ next batch's
    answer stream                                        lane → host │ next batch's

Each batch in flight has a lane, memory of its own at both ends. In between lies what the graphs were captured
with, which only the compute stream touches; the copies within the device that this costs are a hundredth of a
batch. A bucket's rows beyond the batch are padding: the first of them holds the canary.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.buckets import bucket_of, chunks, up_to
from service.errors import ConfigurationError
from service.models import plan
from service.models.cuda import canary
from service.models.cuda.device import Device, Event, Work
from service.models.cuda.lanes import MOST_CANARIES, Lane, Shapes, Shared, neighbours
from service.models.cuda.program import Program
from service.models.delivery import Delivery, longest
from service.models.explain import Explainer
from service.models.runtimes import Answer, Pixels
from service.running import DeviceFailed, Memory, Ran
from service.task import Task, Wanted

log = logging.getLogger(__name__)

#: Images a batch that are tried first, unless the setting says otherwise.
_LARGEST = 256
#: Batches without padding after which the canary gets a forward pass of its own.
CANARY_EVERY = 64
_ROUNDS = 3


class UntrustedError(Exception):
    """What was prepared does not compute the network."""


class StreamRunner:
    """A program behind the door that `service.engine.device.Runner` describes. Belongs to one thread from warm-up on.

    ``image`` is the slot's (height, width, channels). ``max_batch_size`` None takes the smallest size that brings
    nearly all there is.
    """

    in_flight = 2

    def __init__(
        self,
        program: Program,
        device: Device,
        image: tuple[int, int, int],
        max_batch_size: int | None,
        explainer: Explainer | None = None,
    ) -> None:
        self.runtime = program
        self.deliver = Delivery(explainer)
        self.capacity = 0.0
        """Images a second at the largest batch, as `warm_up` saw it."""
        self.max_batch_size = max_batch_size or _LARGEST
        self._chosen = max_batch_size is None
        self._device = device
        self._canary = canary.image(image)
        self._canary_there = device.empty(image, torch.uint8)
        self._copying, self._computing, self._answering = (device.stream() for _ in range(3))
        self._steps: dict[int, Work] = {}
        """By bucket: from the shared pixels to the shared answers."""
        self._shared: Shared | None = None
        self._lanes: deque[Lane] = deque()
        self._references: dict[int, canary.Logits] = {}
        """By bucket: the canary's answer when it was prepared."""
        self._without_canary = 0
        self._adopted: tuple[int, Tensor | None] | None = None
        """The address of the arena's pixels, and the tensor over them if copies can start there."""
        self._warm = False
        self._shapes = self._look_at(image)
        self.feature_shape = self._shapes.features
        """The last block's output: channels, height, width."""
        self.results = longest(self._shapes.answer, self.feature_shape)

    def __repr__(self) -> str:
        return f"<StreamRunner {self.runtime.name} {self.runtime.precision} max_batch_size={self.max_batch_size}>"

    @property
    def limit(self) -> int:
        """Images in a forward pass at most; less than ``max_batch_size`` once memory ran out."""
        return max(self._steps)

    # Getting ready

    def warm_up(self) -> None:
        """Prepares every bucket, the largest that fits in memory at most; seeds the capacity.

        Raises `ConfigurationError` when not even one image fits, `UntrustedError` when what was prepared computes
        something else than the network.
        """
        largest = self.max_batch_size
        while not self._prepare(largest):
            if largest == 1:
                raise ConfigurationError(
                    "the device's memory does not hold the model and one image; free some, or take a smaller model"
                )
            log.warning("out of GPU memory at %d images a batch; trying %d", largest, largest // 2)
            largest //= 2
        self.max_batch_size = largest
        seconds = self._measure()
        if self._chosen:
            by_size = [seconds[bucket_of(size, list(seconds))] for size in range(largest + 1)]
            self.max_batch_size = plan.best_size(by_size, list(seconds))
        size = self.max_batch_size
        self._steps = {bucket: step for bucket, step in self._steps.items() if bucket <= size}
        self.capacity = self._pipelined(size)
        self._warm = True
        log.info(
            "%s %s, up to %d images a batch: %.0f images/s, one image in %.1f ms",
            *(self.runtime.name, self.runtime.precision, size, self.capacity, seconds[1] * 1000),
        )

    def _look_at(self, image: tuple[int, int, int]) -> Shapes:
        """One image through the program, for the shapes of what comes out."""
        found: list[Tensor] = []
        self._computing.copy(self._canary_there, torch.from_numpy(self._canary))
        self._computing.run(lambda: found.extend(self.runtime.forward(self._canary_there[None])))
        self._settle()
        features, answers = found
        channels, height, width = features.shape[1:]
        return Shapes(image, (channels, height, width), answers[0].numel(), features.dtype)

    def _prepare(self, largest: int) -> bool:
        """Memory and steps for batches of up to ``largest``; False when memory runs out."""
        try:
            self._shared = Shared(self._device, self._shapes, largest)
            self._lanes = deque(Lane(self._device, self._shapes, largest) for _ in range(self.in_flight))
            # The largest first: the others find room in what it took.
            for bucket in reversed(up_to(largest)):
                self._steps[bucket] = self._step(bucket)
            self._steps = dict(sorted(self._steps.items()))
        except Exception as error:
            if not self._device.out_of_memory(error):
                self._blame(error)
                raise
            self._shared, self._lanes, self._steps = None, deque(), {}
            self._references.clear()
            self._device.release()
            return False
        return True

    def _step(self, bucket: int) -> Work:
        """A bucket's forward pass, seen to give the canary's answer in every row."""
        shared = self._memory()
        work: Work = partial(_forward, self.runtime, shared, bucket)
        for row in range(bucket):
            self._computing.copy(shared.pixels[row], self._canary_there)
        # Twice: libraries look for their best kernel in the first run and take its memory in the second.
        for _ in range(2):
            self._computing.run(work)
        self._settle()
        if self.runtime.graphs:
            work = self._device.capture(work)
            self._computing.run(work)
        host = self._device.staging((bucket, self._shapes.answer), torch.float32)
        self._computing.copy(host, shared.answers[:bucket])
        self._settle()
        self._references[bucket] = self._trusted(bucket, host.numpy())
        return work

    def _trusted(self, bucket: int, answers: NDArray[np.float32]) -> canary.Logits:
        precision, expected = self.runtime.precision, self.runtime.expected
        reference: canary.Logits = answers[-1].copy()
        if expected is not None and not canary.is_right(reference, expected, precision):
            raise UntrustedError(
                f"runtime={self.runtime.name} in {precision} at {bucket} images is off the network's answer by "
                f"{canary.distance(reference, expected):.2g}"
            )
        if not all(canary.is_same(answer, reference, precision) for answer in answers):
            raise UntrustedError(
                f"runtime={self.runtime.name}: the rows of a batch of {bucket} influence each other"
            )
        return reference

    def _measure(self) -> dict[int, float]:
        """By bucket: seconds of a batch alone, from slots to results."""
        seconds: dict[int, float] = {}
        for bucket in self._steps:
            batch = self._blank(bucket)
            self.run(*batch)
            times = []
            for _ in range(_ROUNDS):
                began = time.perf_counter()
                self.run(*batch)
                times.append(time.perf_counter() - began)
            seconds[bucket] = max(median(times), 1e-9)
            log.debug("%d images: %.2f ms", bucket, seconds[bucket] * 1000)
        return seconds

    def _pipelined(self, size: int) -> float:
        """Images a second, with as many batches in flight as there may be."""
        batch, running = self._blank(size), deque[_Running]()
        began = time.perf_counter()
        for _ in range(_ROUNDS * self.in_flight):
            if len(running) == self.in_flight:
                running.popleft().finish()
            running.append(self.start(*batch))
        for last in running:
            last.finish()
        return size * _ROUNDS * self.in_flight / max(time.perf_counter() - began, 1e-9)

    def _blank(self, images: int) -> tuple[Pixels, list[int], list[Wanted], NDArray[np.float32]]:
        pixels = np.repeat(self._canary[None], images, axis=0)
        results = np.zeros((images, self.results), np.float32)
        return pixels, list(range(images)), [Task.CLASSIFY] * images, results

    # Running

    def run(
        self, pixels: Pixels, slots: list[int], wanted: Sequence[Wanted], results: NDArray[np.float32]
    ) -> None:
        """`start`, and waits."""
        self.start(pixels, slots, wanted, results).finish()

    def start(
        self, pixels: Pixels, slots: list[int], wanted: Sequence[Wanted], results: NDArray[np.float32]
    ) -> _Running:
        """Starts ``pixels[slots]`` (uint8 ``[slots, H, W, C]``); what is ``wanted`` goes to ``results[slots]``.

        At most `in_flight` at once. Raises `DeviceFailed` when the device is lost, and what the model raised else.
        """
        lane = self._lanes.popleft()
        try:
            return _Running(self, lane, pixels, slots, wanted, results)
        except Exception as error:
            self._give_up(lane, error)
            raise

    def check(self) -> Memory:
        """The device's memory, as a sign of its life. Raises `DeviceFailed`."""
        try:
            return self._device.memory()
        except RuntimeError as error:
            raise DeviceFailed(str(error).splitlines()[0]) from error

    def launch(self, batch: _Running) -> None:
        """Puts a batch on the device; in smaller parts, and all later ones too, where memory has run out."""
        while True:
            try:
                batch.event = self._launch(batch)
                return
            except Exception as error:
                if not self._device.out_of_memory(error) or self.limit == 1:
                    raise
                smaller = max(size for size in self._steps if size <= self.limit // 2)
                log.warning("out of GPU memory; from now on at most %d images a forward pass", smaller)
                self._steps = {size: step for size, step in self._steps.items() if size <= smaller}
                self._settle()  # before the lane's memory is written again
                self._device.release()

    def _launch(self, batch: _Running) -> Event:
        images = len(batch.slots)
        self._upload(batch)
        self._computing.wait(self._copying.record())
        batch.rows, batch.canaries = 0, []
        row = 0
        for count in chunks(images, self.limit):
            self._compute(batch, row, count)
            row += count
        self._let_the_canary_out(batch)
        self._answering.wait(self._computing.record())
        self._download(batch)
        return self._answering.record()

    def _upload(self, batch: _Running) -> None:
        lane, source = batch.lane, self._source(batch.pixels)
        if source is not None:
            for row, slot, count in neighbours(batch.slots):
                self._copying.copy(lane.pixels[row : row + count], source[slot : slot + count])
            return
        staged = lane.staged_pixels.numpy()
        for row, slot in enumerate(batch.slots):
            staged[row] = batch.pixels[slot]
        images = len(batch.slots)
        self._copying.copy(lane.pixels[:images], lane.staged_pixels[:images])

    def _source(self, pixels: Pixels) -> Tensor | None:
        """A tensor over ``pixels`` if copies can start there: the first ones after warm-up are the arena's."""
        if not self._warm:
            return None
        if self._adopted is None:
            self._adopted = pixels.ctypes.data, self._device.adopt(pixels)
        address, tensor = self._adopted
        same = tensor is not None and address == pixels.ctypes.data and tensor.shape == pixels.shape
        return tensor if same else None

    def _compute(self, batch: _Running, row: int, count: int) -> None:
        """Rows of the batch from ``row`` on, in the smallest bucket that holds ``count``."""
        shared, lane, stream = self._memory(), batch.lane, self._computing
        bucket, part = bucket_of(count, list(self._steps)), slice(row, row + count)
        stream.copy(shared.pixels[:count], lane.pixels[part])
        if bucket > count:
            stream.copy(shared.pixels[count], self._canary_there)
        stream.run(self._steps[bucket])
        stream.copy(lane.answers[part], shared.answers[:count])
        if batch.wants_features:
            stream.copy(lane.features[part], shared.features[:count])
        if bucket > count:
            self._note_canary(batch, bucket, count)
        batch.rows += bucket

    def _let_the_canary_out(self, batch: _Running) -> None:
        """A forward pass of its own, when many batches in a row had no room for it."""
        self._without_canary = 0 if batch.canaries else self._without_canary + 1
        if self._without_canary < CANARY_EVERY:
            return
        self._without_canary = 0
        bucket = min(self._steps)
        self._computing.copy(self._memory().pixels[0], self._canary_there)
        self._computing.run(self._steps[bucket])
        self._note_canary(batch, bucket, 0)
        batch.rows += bucket

    def _note_canary(self, batch: _Running, bucket: int, row: int) -> None:
        if len(batch.canaries) < MOST_CANARIES:
            self._computing.copy(batch.lane.canaries[len(batch.canaries)], self._memory().answers[row])
            batch.canaries.append(bucket)

    def _download(self, batch: _Running) -> None:
        lane, images, seen = batch.lane, len(batch.slots), len(batch.canaries)
        self._answering.copy(lane.host_answers[:images], lane.answers[:images])
        if seen:
            self._answering.copy(lane.host_canaries[:seen], lane.canaries[:seen])
        if batch.wants_features:
            self._answering.copy(lane.host_features[:images], lane.features[:images])

    # Ending

    def finish(self, batch: _Running) -> Ran:
        """Waits for a batch and writes its results. See `service.running.Running`."""
        try:
            batch.wait()
            mismatches = self._mismatches(batch)
            if mismatches:
                log.error("the canary's answer was wrong; the batch runs again")
                self.launch(batch)
                batch.wait()
                again = self._mismatches(batch)
                if again:
                    raise DeviceFailed(
                        "the device gave wrong answers to the canary image twice (its memory or its arithmetic is "
                        "damaged, or the model's weights on it are)"
                    )
            batch.deliver()
        except Exception as error:
            self._give_up(batch.lane, error)
            raise
        self._lanes.append(batch.lane)
        distrust = (
            "the device gave a wrong answer to the canary image; the batch was run again"
            if mismatches
            else ""
        )
        return Ran(batch.rows, mismatches, distrust)

    def _mismatches(self, batch: _Running) -> int:
        answers = batch.lane.host_canaries.numpy()
        right = [
            canary.is_same(answers[number], self._references[bucket], self.runtime.precision)
            for number, bucket in enumerate(batch.canaries)
        ]
        return len(right) - sum(right)

    def _give_up(self, lane: Lane, error: Exception) -> None:
        """Frees the lane, once nothing on the device touches it. Raises `DeviceFailed` if it was the device."""
        self._blame(error)
        self._settle()
        self._lanes.append(lane)

    def _blame(self, error: Exception) -> None:
        """Raises `DeviceFailed` if ``error`` is the device's."""
        if isinstance(error, DeviceFailed):
            raise error
        reason = self._device.failure(error)
        if reason:
            raise DeviceFailed(reason) from error

    def _settle(self) -> None:
        """Waits for everything on the device."""
        for stream in (self._copying, self._computing, self._answering):
            stream.record().wait()

    def _memory(self) -> Shared:
        assert self._shared is not None, "warm_up was not called"
        return self._shared


def _forward(program: Program, shared: Shared, bucket: int) -> None:
    features, answers = program.forward(shared.pixels[:bucket])
    shared.features[:bucket].copy_(features)
    shared.answers[:bucket].copy_(answers.flatten(1))


class _Running:
    """One batch in flight; see `service.running.Running`."""

    def __init__(
        self,
        runner: StreamRunner,
        lane: Lane,
        pixels: Pixels,
        slots: list[int],
        wanted: Sequence[Wanted],
        results: NDArray[np.float32],
    ) -> None:
        self.lane, self.pixels, self.slots = lane, pixels, slots
        self.wants_features = any(want is not Task.CLASSIFY for want in wanted)
        self.rows = 0
        self.canaries: list[int] = []
        """The bucket of each launch that carried the canary."""
        self.event: Event | None = None
        self._wanted, self._results = wanted, results
        self._deliver = runner.deliver
        self._finish: Callable[[_Running], Ran] = runner.finish
        runner.launch(self)

    def done(self) -> bool:
        return self.event is None or self.event.done()

    def wait(self) -> None:
        assert self.event is not None
        self.event.wait()

    def finish(self) -> Ran:
        return self._finish(self)

    def deliver(self) -> None:
        """The answers, to the slots' results."""
        answers = [Answer(*row) for row in zip(self.lane.host_features, self.lane.host_answers, strict=True)]
        self._deliver(self.slots, self._wanted, answers[: len(self.slots)], self._results)
