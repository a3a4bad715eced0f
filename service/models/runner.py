"""Runs the model on its device: uint8 slots in, logits out. Belongs to one thread from warm-up on."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from service.models import batch_plan
from service.models.canary import Logits
from service.models.explain import Explainer
from service.models.guard import Guard
from service.models.output_writer import OutputWriter, max_output_length
from service.models.runtimes import Executor, Pixels, Preparable, Runtime, SupportsStreams
from service.models.runtimes.machine import Measured, Notes
from service.models.streams import CpuStreams
from service.shared.batches import BatchReport, CompletedBatch, Memory
from service.shared.fallback import Fallback
from service.shared.outputs import OutputRequest

log = logging.getLogger(__name__)

#: Batch sizes that the warm-up measures: a processor gains nothing from more images.
_SIZES = (1, 2, 4, 8, 16, 32, 64)
#: Most images of a batch, if neither setting nor runtime limits it.
_MAX_BATCH_SIZE = 1 << 16
#: Rounds of measurements, so that a short disturbance does not hit one size alone; and seconds after which a start
#: begins no further round, since an idle engine measures again.
_ROUNDS, _BUDGET = 3, 0.5
#: Share of the longest allowed pass above which twice the images are not tried.
_SOON = 0.7
#: Most starts that measure: more would learn nothing new.
_MEASUREMENTS = 4
#: Seconds below which a pass is repeated at once, and the repeats: the first pass finds the executor's threads
#: asleep.
_QUICK, _REPEATS = 0.01, 4


class ModelRunner:
    """A runtime as a `service.engine.device.Runner`.

    ``image`` is the slot's (height, width, channels). ``max_batch_size`` None lets `warm_up` choose the smallest
    size with nearly the best throughput. ``explainer`` is None for a network without a head. ``shapes`` are the
    shape of the features and the number of logits; None finds them with a first image. ``notes`` hold the
    measurements of earlier starts. ``expected`` are the network's answers to the canaries, if they are known.
    """

    def __init__(
        self,
        runtime: Runtime,
        image: tuple[int, int, int],
        max_batch_size: int | None,
        explainer: Explainer | None = None,
        shapes: tuple[tuple[int, int, int], int] | None = None,
        notes: Notes | None = None,
        expected: Logits | None = None,
    ) -> None:
        self.runtime = runtime
        self.capacity = 0.0
        """Images a second at the largest batch, measured by `warm_up`."""
        self.max_batch_size = min(max_batch_size or _SIZES[-1], runtime.max_batch_size or _MAX_BATCH_SIZE)
        self._chosen = max_batch_size is None
        self._image = image
        self.streams: CpuStreams | None = None
        """The streams in which single images run side by side, if `warm_up` finds them useful."""
        self._executors = dict(enumerate(runtime.executors()))
        self._notes = notes or Notes()
        #: For each number of images, the steps that run it; empty until warm-up.
        self._steps: tuple[tuple[batch_plan.Step, ...], ...] = ()
        self.feature_shape, logits = shapes or self._shapes()
        """Shape of the last block's output: channels, height, width."""
        self.results = max_output_length(logits, self.feature_shape)
        self._deliver = OutputWriter(explainer)
        self._guard = Guard(image, runtime.precision, expected)

    def __repr__(self) -> str:
        return (
            f"<ModelRunner {self.runtime.name} {self.runtime.precision} max_batch_size={self.max_batch_size}>"
        )

    def warm_up(self) -> None:
        """Plans the fastest executors for each number of images, by the notes or by measurements.

        It runs each planned executor once, sets the capacity, and chooses the largest batch size if that is left to
        it. Raises `UntrustedError` if the answers are not the network's.
        """
        measured = self._notes.read()
        times = self._recalled(measured)
        pixels = self._blank(
            max(self.max_batch_size, *(executor.parallelism or 1 for executor in self._executors.values()))
        )
        if times is None:
            log.info("measuring what is fastest here; the next start knows it")
            times = self._measure(pixels)
            self._notes.write(Measured(self._named(times), graph=self._notes.graph))
        parallelisms = [executor.parallelism for executor in self._executors.values()]
        found = batch_plan.schedule(self._weighed(times), parallelisms, self.max_batch_size)
        if self._chosen:
            self.max_batch_size = batch_plan.best_size(found.seconds, sorted(times[0]))
        self.capacity = max(size / found.seconds[size] for size in range(1, self.max_batch_size + 1))
        self._steps = found.steps[: self.max_batch_size + 1]
        self._settle()
        self.streams = self._streams()
        log.info(
            "%s, up to %d images a batch: %.1f images/s, one image in %.1f ms; executors: %s",
            *(self.runtime.name, self.max_batch_size, self.capacity, found.seconds[1] * 1000),
            ", ".join(executor.name for executor in self._executors.values()),
        )

    def measure_again(self) -> Iterator[None]:
        """Measures the noted times once more, one pass a step, and corrects the notes for the next start.

        Disturbances make a measurement longer, so the least of several is right. The executors are extra ones, so
        this runner can work meanwhile, if more slowly.
        """
        known = self._notes.read()
        another = self.runtime.another() if known and known.rounds < _MEASUREMENTS else None
        if known is None or another is None:
            return
        times: dict[str, dict[int, float]] = {}
        for executor in another.executors():
            sizes = known.times.get(executor.name, {})
            pixels = self._blank(max(sizes, default=1))
            for size in sizes:
                _once(executor, pixels, size)  # this pass pays for set-up
                yield
                for _ in range(_ROUNDS):
                    took = _time(executor, pixels, size)
                    times.setdefault(executor.name, {})[size] = min(
                        took, times.get(executor.name, {}).get(size, took)
                    )
                    yield
        another.settle([])
        self._notes.write(known.merged(Measured(times, 1, known.graph)))
        log.info("measured %d times by now; the next start plans with it", known.rounds + 1)

    def run(
        self, pixels: Pixels, slots: list[int], wanted: Sequence[OutputRequest], results: NDArray[np.float32]
    ) -> None:
        """Runs ``pixels[slots]`` (uint8 ``[slots, H, W, C]``) and writes the ``wanted`` outputs to
        ``results[slots]``."""
        done = 0
        for step in self._planned(len(slots)):
            part, executor = slice(done, done + step.images), self._executors[step.executor]
            self._deliver(slots[part], wanted[part], executor(pixels, slots[part]), results)
            self._guard.ran(executor.name, step.images)
            done += step.images

    #: `run` keeps the processor busy to the end; a second batch would only take cores from the first.
    in_flight = 1

    def start(
        self, pixels: Pixels, slots: list[int], wanted: Sequence[OutputRequest], results: NDArray[np.float32]
    ) -> CompletedBatch:
        """Runs a batch as the engine calls it: already completed when this returns."""
        self.run(pixels, slots, wanted, results)
        return CompletedBatch(BatchReport(len(slots), canary_due=self._guard.due))

    def canary(self) -> CompletedBatch:
        """Shows the canary to the executor for which it is most urgent. Raises `DeviceFailed`."""
        ran = self._guard.check(list(self._executors.values()))
        return CompletedBatch(replace(ran, canary_due=self._guard.due))

    def hurry(self) -> None:
        """Ends the canary early if it runs. Can be called in any thread."""
        self._guard.stop()

    def adopt(self, pixels: Pixels) -> Sequence[Fallback]:
        """Does nothing: a processor reads any memory."""
        return ()

    def check(self) -> Memory:
        """Returns nothing: the processor has no memory of its own."""
        return Memory()

    def _shapes(self) -> tuple[tuple[int, int, int], int]:
        features, logits = self._executors[0](self._blank(1), [0])[0]
        channels, height, width = features.shape
        return (channels, height, width), logits.size

    def _planned(self, images: int) -> tuple[batch_plan.Step, ...]:
        """Returns the steps for a number of images; before `warm_up`, all go to the first executor."""
        return self._steps[images] if self._steps else (batch_plan.Step(0, images),)

    def _blank(self, images: int) -> Pixels:
        return np.zeros((images, *self._image), np.uint8)

    def _measure(self, pixels: Pixels) -> list[dict[int, float]]:
        """Returns seconds for each size by each executor: the best of some rounds, after a first pass for set-up."""
        self._prepare()
        times: list[dict[int, float]] = []
        sizes = [*(size for size in _SIZES if size < self.max_batch_size), self.max_batch_size]
        for executor in self._executors.values():
            times.append({})
            for size in [executor.parallelism] if executor.parallelism else sizes:
                times[-1][size] = took = _once(executor, pixels, size)
                if size >= batch_plan.MIN_BATCH_SIZE and took > _SOON * batch_plan.MAX_BATCH_SECONDS:
                    break  # larger batches are composed of these
        tried = [(number, size) for number, measured in enumerate(times) for size in measured]
        rounds, began = list[list[float]](), time.perf_counter()
        while len(rounds) < _ROUNDS and (not rounds or time.perf_counter() - began < _BUDGET):
            rounds.append([_time(self._executors[number], pixels, size) for number, size in tried])
        least = [min(of_one) for of_one in zip(*rounds, strict=True)]
        for (number, size), took in zip(tried, least, strict=True):
            times[number][size] = took
            log.debug("%d images, executor %d: %.1f ms", size, number, took * 1000)
        return times

    def _prepare(self) -> None:
        """Compiles the executors side by side, on a core each."""
        with ThreadPoolExecutor(len(self._executors)) as threads:
            list(threads.map(_prepare, self._executors.values()))

    def _named(self, times: list[dict[int, float]]) -> dict[str, dict[int, float]]:
        return {
            executor.name: measured
            for executor, measured in zip(self._executors.values(), times, strict=True)
        }

    def _recalled(self, measured: Measured | None) -> list[dict[int, float]] | None:
        """Returns the notes' times in the order of the executors; None unless the notes are about exactly these."""
        names = [executor.name for executor in self._executors.values()]
        if measured is None or sorted(measured.times) != sorted(names):
            return None
        return [dict(measured.times[name]) for name in names]

    def _weighed(self, times: list[dict[int, float]]) -> list[dict[int, float]]:
        """Returns the times, multiplied by the executors' handicaps."""
        handicaps = [getattr(executor, "handicap", 1.0) for executor in self._executors.values()]
        pairs = zip(times, handicaps, strict=True)
        return [
            {size: took * handicap for size, took in of_executor.items()} for of_executor, handicap in pairs
        ]

    def _settle(self) -> None:
        """Drops the executors that no plan uses, and runs the others once."""
        taken = {step for steps in self._steps for step in steps}
        self._executors = {
            number: self._executors[number] for number in sorted({step.executor for step in taken})
        }
        self._prepare()
        executors = list(self._executors.values())
        sizes = [
            sorted(_sizes(executor, [step.images for step in taken if step.executor == number]))
            for number, executor in self._executors.items()
        ]
        self._guard.learn(executors, sizes)
        names = [executor.name for executor in executors]
        if self.runtime.settle(names):
            self._guard.learn(executors, sizes)
            self.runtime.settle(names)

    def _streams(self) -> CpuStreams | None:
        """Returns the streams of an executor that the plan uses for several images."""
        for number, executor in self._executors.items():
            if (
                executor.parallelism is not None
                and executor.parallelism > 1
                and isinstance(executor, SupportsStreams)
            ):
                taken = [any(step.executor == number for step in steps) for steps in self._steps]
                return CpuStreams(executor.name, executor.streams(), taken, self._deliver, self._guard)
        return None


def _prepare(executor: Executor) -> None:
    if isinstance(executor, Preparable):
        executor.prepare()


def _sizes(executor: Executor, taken: Sequence[int]) -> set[int]:
    """Returns the sizes in which the executor will run; images that run one by one need only one full size."""
    return {1, executor.parallelism} if executor.parallelism else set(taken)


def _time(executor: Executor, pixels: Pixels, images: int) -> float:
    """Returns the seconds of a pass; of a quick one, the best of several."""
    took = _once(executor, pixels, images)
    if took > _QUICK:
        return took
    return min(took, *(_once(executor, pixels, images) for _ in range(_REPEATS)))


def _once(executor: Executor, pixels: Pixels, images: int) -> float:
    began = time.perf_counter()
    executor(pixels, range(images))
    return time.perf_counter() - began
