"""Plans which executor runs which batch: pure arithmetic over measured times.

times      per executor: {images: seconds}, as the warm-up measured them
schedule   for each number of images up to the largest: the steps that take the least time together
best_size  the largest number of images that one batch should hold
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

#: Least batch size, unless the setting gives a smaller one: large enough to share a batch on any host, however noisy
#: its warm-up.
MIN_BATCH_SIZE = 4
#: Least gain in throughput that justifies a larger batch, which adds latency.
_WORTHWHILE = 1.05
#: Most seconds of one batch: every image in it waits this long.
MAX_BATCH_SECONDS = 0.25


@dataclass(frozen=True)
class Step:
    """``images`` of a batch, run by the executor with this number."""

    executor: int
    images: int


@dataclass(frozen=True)
class Schedule:
    """``steps[n]`` run n images in ``seconds[n]``; entry 0 is empty."""

    steps: tuple[tuple[Step, ...], ...]
    seconds: tuple[float, ...]


def schedule(
    times: Sequence[Mapping[int, float]], parallelisms: Sequence[int | None], largest: int
) -> Schedule:
    """Returns the fastest composition for each number of images from 1 to ``largest``.

    ``parallelisms`` are those of the executors (`service.models.runtimes.Executor`). An executor with a parallelism
    was measured for that many images and takes any multiple in one step. An executor without one runs any number;
    times between two measured ones are interpolated. The first executor must be of the second kind.
    """
    costs = [
        _costs(measured, parallelism, largest)
        for measured, parallelism in zip(times, parallelisms, strict=True)
    ]
    steps: list[tuple[Step, ...]] = [()]
    seconds = [0.0]
    for images in range(1, largest + 1):
        took, executor, last = min(
            (seconds[images - count] + cost, executor, count)
            for executor, of_executor in enumerate(costs)
            for count, cost in of_executor.items()
            if count <= images
        )
        steps.append(_appended(steps[images - last], Step(executor, last), parallelisms))
        seconds.append(took)
    return Schedule(tuple(steps), tuple(seconds))


def _costs(measured: Mapping[int, float], parallelism: int | None, largest: int) -> Mapping[int, float]:
    if parallelism is not None:
        return measured
    sizes = sorted(measured)
    return {
        images: float(np.interp(images, sizes, [measured[size] for size in sizes]))
        for images in range(1, min(largest, sizes[-1]) + 1)
    }


def _appended(steps: tuple[Step, ...], step: Step, parallelisms: Sequence[int | None]) -> tuple[Step, ...]:
    """Adds a step, or lengthens an existing step of an executor that takes images one by one."""
    if parallelisms[step.executor] is not None:
        for place, other in enumerate(steps):
            if other.executor == step.executor:
                longer = Step(step.executor, other.images + step.images)
                return (*steps[:place], longer, *steps[place + 1 :])
    return (*steps, step)


def best_size(seconds: Sequence[float], sizes: Sequence[int]) -> int:
    """Returns the smallest of ``sizes`` with nearly the best throughput, at least `MIN_BATCH_SIZE`.

    ``seconds[n]`` is the time of n images. No batch above `MIN_BATCH_SIZE` takes longer than `MAX_BATCH_SECONDS`.
    """
    allowed = [size for size in sizes if size <= MIN_BATCH_SIZE or seconds[size] <= MAX_BATCH_SECONDS]
    wanted = [size for size in allowed if size >= min(MIN_BATCH_SIZE, allowed[-1])]
    most = max(size / seconds[size] for size in wanted)
    return next(size for size in wanted if size / seconds[size] * _WORTHWHILE >= most)
