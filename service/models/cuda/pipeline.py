"""Runs batches on a device that copies, computes and returns results at the same time.

    copy stream      slots → buffers' pixels        │ next batch's
    compute stream        buffers → shared → graph → buffers' answers │ next batch's
    answer stream                                       buffers → host │ next batch's

Each batch in flight has its own buffers at both ends. The graphs were captured with the shared memory in between,
which only the compute stream touches; the extra copies within the device take a hundredth of a batch's time. A
bucket's rows beyond the batch are padding, and the first of them holds a canary; the known images take turns.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from service.errors import ConfigurationError
from service.models import batch_plan, canary
from service.models.cuda import measure
from service.models.cuda.buffers import MAX_CANARIES, BatchBuffers, neighbours
from service.models.cuda.device import Device, Event
from service.models.cuda.in_flight import InFlightBatch
from service.models.cuda.prepare import GraphBuilder, Prepared
from service.models.cuda.program import Choice
from service.models.explain import Explainer
from service.models.output_writer import OutputWriter, max_output_length
from service.models.runtimes import Pixels
from service.models.watch import Trust, Watch
from service.shared.batches import BatchReport, DeviceFailed, Memory
from service.shared.buckets import bucket_of, chunks
from service.shared.fallback import Fallback, Fallbacks
from service.shared.outputs import OutputRequest

log = logging.getLogger(__name__)

#: Images a batch that are tried first, unless the setting gives a number.
_MAX_BATCH_SIZE = 256
#: All buckets read the same weights, so they count as one place for the canary.
_DEVICE = "device"


class CudaRunner:
    """A program on a CUDA device, as a `service.engine.device.Runner`. Belongs to one thread from warm-up on.

    ``image`` is the slot's (height, width, channels). ``max_batch_size`` None takes the smallest size with nearly
    the best throughput.
    """

    in_flight = 2
    streams = None

    def __init__(
        self,
        choices: Sequence[Choice],
        device: Device,
        image: tuple[int, int, int],
        max_batch_size: int | None,
        explainer: Explainer | None = None,
        fallbacks: Fallbacks | None = None,
    ) -> None:
        """Takes the first of ``choices`` that works, here and in `warm_up`. Raises `StartError`.

        ``fallbacks`` records every choice that did not work.
        """
        self._fallbacks = fallbacks or Fallbacks()
        self._deliver = OutputWriter(explainer)
        self.capacity = 0.0
        """Images a second at the largest batch, measured by `warm_up`."""
        self._wanted = max_batch_size
        self._device = device
        known = canary.images(image)
        self._canary = known[0]
        self._turns = cycle(range(len(known)))
        """The number of the canary that the next batch carries."""
        self._copying, self._computing, self._answering = (device.stream() for _ in range(3))
        self._choices = deque(choices)
        self._without = ""
        """Name of the feature that is given up if the present program fails."""
        self._graph_builder = GraphBuilder(device, self._computing, known)
        self._prepared: Prepared | None = None
        self._watch = Watch([_DEVICE])
        self._trust = Trust()
        self._adopted: Tensor | None = None
        """A tensor over the arena's pixels, if copies can start there."""
        self._take_program()

    def __repr__(self) -> str:
        return (
            f"<CudaRunner {self.runtime.name} {self.runtime.precision} max_batch_size={self.max_batch_size}>"
        )

    @property
    def limit(self) -> int:
        """Most images in a forward pass; less than ``max_batch_size`` after memory ran out."""
        return max(self._ready().steps)

    @property
    def image(self) -> tuple[int, int, int]:
        """Height, width and channels of a slot."""
        return self._shapes.image

    @property
    def buckets(self) -> tuple[int, ...]:
        """Numbers of rows that a forward pass may have, ascending."""
        return tuple(self._ready().steps)

    # Getting ready

    def _take_program(self) -> None:
        """Takes the next program that runs one image, and the shapes of its results."""
        while True:
            try:
                choice = self._choices.popleft()
                self._without = choice.without
                self.runtime = choice.make()
                self._shapes = self._graph_builder.probe_shapes(self.runtime)
                break
            except Exception as error:
                self._go_on_after(error)
        self.feature_shape = self._shapes.features
        """Shape of the last block's output: channels, height, width."""
        self.results = max_output_length(self._shapes.answer, self.feature_shape)
        self.max_batch_size = min(
            self._wanted or _MAX_BATCH_SIZE, self.runtime.max_batch_size or _MAX_BATCH_SIZE
        )

    def _go_on_after(self, error: Exception) -> None:
        """Raises ``error`` if no other program is left to be tried."""
        self._prepared = None
        self._blame(error)
        if self._choices:
            self._fallbacks.add(self._without, error)
            self._device.release()
            return
        if self._device.out_of_memory(error):
            raise ConfigurationError(
                "the device's memory does not hold the model and one image; free some, or take a smaller model"
            ) from error
        raise error

    def warm_up(self) -> None:
        """Prepares every bucket, up to the largest that fits in memory, and measures the capacity.

        Raises `ConfigurationError` if no program is left: not even one image fits, or the answers are not the
        network's.
        """
        while True:
            try:
                self._prepare()
                seconds = measure.by_bucket(self, self._canary)
                break
            except Exception as error:
                self._go_on_after(error)
                self._take_program()
        self._choices.clear()
        if self._wanted is None:
            by_size = [seconds[bucket_of(size, list(seconds))] for size in range(self.limit + 1)]
            self.max_batch_size = batch_plan.best_size(by_size, list(seconds))
        self._limit_to(self.max_batch_size)
        self.capacity = measure.pipelined(self, self._canary, self.max_batch_size)
        log.info(
            "%s %s, up to %d images a batch: %.0f images/s, one image in %.1f ms",
            *(self.runtime.name, self.runtime.precision, self.max_batch_size),
            *(self.capacity, seconds[1] * 1000),
        )

    def _prepare(self) -> None:
        largest = self.max_batch_size
        while True:
            try:
                self._prepared = self._graph_builder.prepare(
                    self.runtime, self._shapes, largest, self.in_flight
                )
                self.max_batch_size = largest
                return
            except Exception as error:
                if not self._device.out_of_memory(error) or largest == 1:
                    raise
                log.warning("out of GPU memory at %d images a batch; trying %d", largest, largest // 2)
            # Outside of the handler, since the error's traceback holds the memory.
            largest //= 2
            self._device.release()

    def _limit_to(self, size: int) -> None:
        ready = self._ready()
        ready.steps = {bucket: step for bucket, step in ready.steps.items() if bucket <= size}

    def forward_rate(self, seconds: float, size: int | None = None) -> float:
        """Returns images a second of forward passes of ``size`` (default: the largest) without copies, in about
        ``seconds``."""
        size = size or self.limit
        step, images = self._ready().steps[size], 0
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            for _ in range(measure.ROUNDS):
                self._computing.run(step)
            self._synchronize()
            images += measure.ROUNDS * size
        return images / (time.perf_counter() - began)

    # Running batches

    def run(
        self, pixels: Pixels, slots: list[int], wanted: Sequence[OutputRequest], results: NDArray[np.float32]
    ) -> None:
        """Starts a batch and waits for it."""
        rest = self.start(pixels, slots, wanted, results).finish().rest
        if rest is not None:
            rest()

    def start(
        self, pixels: Pixels, slots: list[int], wanted: Sequence[OutputRequest], results: NDArray[np.float32]
    ) -> InFlightBatch:
        """Starts ``pixels[slots]`` (uint8 ``[slots, H, W, C]``); the ``wanted`` outputs go to ``results[slots]``.

        At most `in_flight` batches may run at once. Raises `DeviceFailed` if the device is lost, otherwise the
        model's error.
        """
        buffers = self._ready().free_buffers.popleft()
        try:
            batch = InFlightBatch(buffers, pixels, slots, wanted, results, self.finish, next(self._turns))
            self._start(batch)
            return batch
        except Exception as error:
            self._give_up(buffers, error)
            raise

    def canary(self) -> InFlightBatch:
        """Starts a forward pass with the canary alone. All that `start` says of batches applies."""
        nothing = np.empty((0, self.results), np.float32)
        return self.start(np.empty((0, *self.image), np.uint8), [], [], nothing)

    def hurry(self) -> None:
        """Does nothing: work on the device cannot be stopped, and takes milliseconds."""

    def adopt(self, pixels: Pixels) -> Sequence[Fallback]:
        """Registers the memory of future batches, uint8 ``[slots, H, W, C]``, so that copies start there.

        Returns what is given up if that is refused.
        """
        adopted = self._device.adopt(pixels)
        if isinstance(adopted, str):
            return [self._fallbacks.add("registered memory", adopted)]
        self._adopted = adopted
        return ()

    def check(self) -> Memory:
        """Returns the device's memory, as a sign that it works. Raises `DeviceFailed`."""
        try:
            return self._device.memory()
        except RuntimeError as error:
            raise DeviceFailed(str(error).splitlines()[0]) from error

    def _start(self, batch: InFlightBatch) -> None:
        """Puts a batch on the device. If memory runs out, it is split, and all later batches are split as well."""
        while True:
            try:
                batch.event = self._launch(batch)
                return
            except Exception as error:
                if not self._device.out_of_memory(error) or self.limit == 1:
                    raise
                smaller = max(size for size in self._ready().steps if size <= self.limit // 2)
                log.warning("out of GPU memory; from now on at most %d images a forward pass", smaller)
                self._limit_to(smaller)
                self._synchronize()  # before the buffers are written again
                self._device.release()

    def _launch(self, batch: InFlightBatch) -> Event:
        images = len(batch.slots)
        batch.rows, batch.canaries = 0, []
        if images:
            self._upload(batch)
            self._computing.wait(self._copying.record())
        row = 0
        for count in chunks(images, self.limit):
            self._compute(batch, row, count)
            row += count
        if not images:
            self._compute_canary(batch)
        self._answering.wait(self._computing.record())
        self._download(batch)
        return self._answering.record()

    def _upload(self, batch: InFlightBatch) -> None:
        buffers, source = batch.buffers, self._source(batch.pixels)
        if source is not None:
            self._copying.copy_all(
                (buffers.pixels[row : row + count], source[slot : slot + count])
                for row, slot, count in neighbours(batch.slots)
            )
            return
        staged = buffers.staged_pixels.numpy()
        for row, slot in enumerate(batch.slots):
            staged[row] = batch.pixels[slot]
        images = len(batch.slots)
        self._copying.copy(buffers.pixels[:images], buffers.staged_pixels[:images])

    def _source(self, pixels: Pixels) -> Tensor | None:
        """Returns a tensor over ``pixels`` if copies can start there."""
        adopted = self._adopted
        same = (
            adopted is not None and adopted.data_ptr() == pixels.ctypes.data and adopted.shape == pixels.shape
        )
        return adopted if same else None

    def _compute(self, batch: InFlightBatch, row: int, count: int) -> None:
        """Computes ``count`` rows of the batch from ``row`` on, in the smallest bucket that holds them."""
        ready, buffers, stream = self._ready(), batch.buffers, self._computing
        shared = ready.shared
        bucket, part = bucket_of(count, list(ready.steps)), slice(row, row + count)
        stream.copy(shared.pixels[:count], buffers.pixels[part])
        if bucket > count:
            stream.copy(shared.pixels[count], self._graph_builder.canaries[batch.canary])
        stream.run(ready.steps[bucket])
        stream.copy(buffers.answers[part], shared.answers[:count])
        if batch.wants_features:
            stream.copy(buffers.features[part], shared.features[:count])
        if bucket > count:
            self._note_canary(batch, bucket, count)
        batch.rows += bucket

    def _compute_canary(self, batch: InFlightBatch) -> None:
        """Computes the canary alone, after many batches without room for it or without any batch."""
        ready = self._ready()
        bucket = min(ready.steps)
        self._computing.copy(ready.shared.pixels[0], self._graph_builder.canaries[batch.canary])
        self._computing.run(ready.steps[bucket])
        self._note_canary(batch, bucket, 0)
        batch.rows += bucket

    def _note_canary(self, batch: InFlightBatch, bucket: int, row: int) -> None:
        if len(batch.canaries) < MAX_CANARIES:
            self._computing.copy(
                batch.buffers.canaries[len(batch.canaries)], self._ready().shared.answers[row]
            )
            batch.canaries.append(bucket)

    def _download(self, batch: InFlightBatch) -> None:
        buffers, images, seen = batch.buffers, len(batch.slots), len(batch.canaries)
        if images:
            self._answering.copy(buffers.host_answers[:images], buffers.answers[:images])
        if seen:
            self._answering.copy(buffers.host_canaries[:seen], buffers.canaries[:seen])
        if batch.wants_features:
            self._answering.copy(buffers.host_features[:images], buffers.features[:images])

    # Ending

    def finish(self, batch: InFlightBatch) -> BatchReport:
        """Waits for a batch and writes its results. See `service.shared.batches.BatchHandle`."""
        try:
            batch.wait()
            ran = self._trust.judge(self._mismatches(batch), len(batch.canaries), lambda: self._again(batch))
            rest = batch.deliver(self._deliver)
        except Exception as error:
            self._give_up(batch.buffers, error)
            raise
        self._ready().free_buffers.append(batch.buffers)
        self._watch.ran(_DEVICE)
        if batch.canaries:
            self._watch.checked(_DEVICE)
        return replace(ran, rows=batch.rows, canary_due=self._watch.due, rest=rest)

    def _again(self, batch: InFlightBatch) -> int:
        """Runs the batch once more and returns how many answers to the canary are wrong now."""
        self._start(batch)
        batch.wait()
        return self._mismatches(batch)

    def _mismatches(self, batch: InFlightBatch) -> int:
        answers = batch.buffers.host_canaries.numpy()
        right = [
            canary.is_same(
                answers[number], self._ready().references[bucket][batch.canary], self.runtime.precision
            )
            for number, bucket in enumerate(batch.canaries)
        ]
        return len(right) - sum(right)

    def _give_up(self, buffers: BatchBuffers, error: Exception) -> None:
        """Frees the buffers once nothing on the device uses them. Raises `DeviceFailed` if the device itself failed."""
        self._blame(error)
        self._synchronize()
        self._ready().free_buffers.append(buffers)

    def _blame(self, error: Exception) -> None:
        """Raises `DeviceFailed` if ``error`` comes from the device itself."""
        if isinstance(error, DeviceFailed):
            raise error
        reason = self._device.failure(error)
        if reason:
            raise DeviceFailed(reason) from error

    def _synchronize(self) -> None:
        for stream in (self._copying, self._computing, self._answering):
            stream.record().wait()

    def _ready(self) -> Prepared:
        assert self._prepared is not None, "warm_up was not called"
        return self._prepared
