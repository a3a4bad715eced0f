"""Measures the times of batches and the images a second of a prepared runner."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.models.cuda.in_flight import InFlightBatch
from service.models.runtimes import Pixels
from service.shared.outputs import OutputKind, OutputRequest

#: Number of measurements of each time.
ROUNDS = 3
#: Shortest time in seconds: a clock that stands still must not make a rate infinite.
_MIN_SECONDS = 1e-9


class Runner(Protocol):
    """A prepared runner that is measured. Its methods are those of `service.engine.device.Runner`."""

    in_flight: int
    """Most batches on the device at a time."""

    @property
    def buckets(self) -> Sequence[int]:
        """Batch sizes that it is prepared for."""

    @property
    def results(self) -> int:
        """Length of a slot's results in float32."""

    def run(
        self, pixels: Pixels, slots: list[int], wanted: Sequence[OutputRequest], results: NDArray[np.float32]
    ) -> object: ...

    def start(
        self, pixels: Pixels, slots: list[int], wanted: Sequence[OutputRequest], results: NDArray[np.float32]
    ) -> InFlightBatch: ...


def by_bucket(runner: Runner, image: Pixels) -> dict[int, float]:
    """Returns the seconds of one batch of each bucket, from slots to results. ``image`` fills the batch."""
    seconds: dict[int, float] = {}
    for bucket in runner.buckets:
        batch = _batch(runner, image, bucket)
        runner.run(*batch)
        times = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            runner.run(*batch)
            times.append(time.perf_counter() - began)
        seconds[bucket] = max(median(times), _MIN_SECONDS)
    return seconds


def pipelined(runner: Runner, image: Pixels, size: int) -> float:
    """Returns images a second with as many batches in flight as possible."""
    batch, in_flight = _batch(runner, image, size), deque[InFlightBatch]()
    batches = ROUNDS * runner.in_flight
    began = time.perf_counter()
    for _ in range(batches):
        if len(in_flight) == runner.in_flight:
            in_flight.popleft().finish()
        in_flight.append(runner.start(*batch))
    for last in in_flight:
        last.finish()
    return size * batches / max(time.perf_counter() - began, _MIN_SECONDS)


def _batch(
    runner: Runner, image: Pixels, images: int
) -> tuple[Pixels, list[int], list[OutputRequest], NDArray[np.float32]]:
    pixels = np.repeat(image[None], images, axis=0)
    results = np.zeros((images, runner.results), np.float32)
    return pixels, list(range(images)), [OutputKind.CLASSIFY] * images, results
