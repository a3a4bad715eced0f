"""What owns the device: batches in, finished batches out, a byte on a pipe for each.

One thread, or one for each lane of a device that computes several images side by side.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.engine.arena import Arena
from service.engine.batcher import Request
from service.task import Task

log = logging.getLogger(__name__)


class Lanes(Protocol):
    """A device in parts: each lane runs an image of its own, and takes the next one without waiting for the others."""

    count: int

    def sooner(self, images: int) -> bool:
        """Whether this many, on a device that has nothing else to do, run sooner in lanes than as one batch."""

    def run(
        self, lane: int, pixels: NDArray[np.uint8], slot: int, task: Task, results: NDArray[np.float32]
    ) -> None:
        """`Runner.run` of one image. Other threads run other lanes at the same time."""


class Runner(Protocol):
    """What the engine wants of a model. `service.models.runner` has the real one, tests/fakes.py a hostile one."""

    max_batch_size: int
    results: int
    """Length of the longest answer in float32."""

    @property
    def lanes(self) -> Lanes | None:
        """None where a batch always has the whole device."""

    def run(
        self, pixels: NDArray[np.uint8], slots: list[int], tasks: list[Task], results: NDArray[np.float32]
    ) -> None:
        """Runs ``pixels[slots]`` (uint8 ``[slots, H, W, C]``) and writes what ``tasks`` want to ``results[slots]``."""


@dataclass
class Batch:
    """Requests that run together. Times are seconds of the monotonic clock."""

    number: int
    requests: list[Request]
    tasks: list[Task]
    lane: int | None = None
    """Of a device with lanes: where this one image runs; None for a batch that has the whole device."""
    started: float = 0.0
    finished: float = 0.0
    error: Exception | None = None
    slots: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.slots = [request.slot for request in self.requests]


class Device:
    """Runs batches in the order in which they come. ``fileno()`` becomes readable when one has finished.

    CUDA graphs and OpenMP teams belong to a thread, so without lanes it is always the same one. With lanes
    there are as many threads, and whoever submits sees to it that no lane has two batches.
    """

    def __init__(self, runner: Runner, arena: Arena, clock: Callable[[], float] = time.monotonic) -> None:
        self._runner = runner
        self._arena = arena
        self._clock = clock
        self._jobs: SimpleQueue[Batch | None] = SimpleQueue()
        self._done: SimpleQueue[Batch] = SimpleQueue()
        self._wake_read, self._wake_write = os.pipe()
        count = runner.lanes.count if runner.lanes else 1
        self._threads = [
            threading.Thread(target=self._work, name=f"device-{number}", daemon=True)
            for number in range(count)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def fileno(self) -> int:
        return self._wake_read

    def submit(self, batch: Batch) -> None:
        self._jobs.put(batch)

    def collect(self) -> Batch:
        """The batch that has finished. Call it once for each time that ``fileno()`` is readable."""
        os.read(self._wake_read, 1)
        return self._done.get()

    def stop(self) -> None:
        """Lets the threads end after what they were given, and waits for that."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _work(self) -> None:
        while (batch := self._jobs.get()) is not None:
            self._run(batch)
            self._done.put(batch)
            os.write(self._wake_write, b"\0")

    def _run(self, batch: Batch) -> None:
        batch.started = self._clock()
        try:
            self._compute(batch)
        except Exception as error:
            # The border of this thread: whatever a model raises is the batch's failure, not the engine's.
            log.exception("the model failed on a batch of %d", len(batch.requests))
            batch.error = error
        batch.finished = self._clock()

    def _compute(self, batch: Batch) -> None:
        pixels, results = self._arena.pixels, self._arena.results
        if batch.lane is None:
            self._runner.run(pixels, batch.slots, batch.tasks, results)
        else:
            assert self._runner.lanes is not None
            self._runner.lanes.run(batch.lane, pixels, batch.slots[0], batch.tasks[0], results)
