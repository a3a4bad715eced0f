"""The one thread that owns the device: batches in, finished batches out, a byte on a pipe for each."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.engine.arena import Arena
from service.engine.batcher import Request
from service.task import Wanted

log = logging.getLogger(__name__)


class Runner(Protocol):
    """What the engine wants of a model. `service.models.runner` has the real one, tests/fakes.py a hostile one."""

    max_batch_size: int
    results: int
    """Length of the longest answer in float32."""

    def run(
        self,
        pixels: NDArray[np.uint8],
        slots: list[int],
        wanted: Sequence[Wanted],
        results: NDArray[np.float32],
    ) -> None:
        """Runs ``pixels[slots]`` (uint8 ``[slots, H, W, C]``) and writes what is ``wanted`` to ``results[slots]``."""


@dataclass
class Batch:
    """Requests that run together. Times are seconds of the monotonic clock."""

    number: int
    requests: list[Request]
    wanted: list[Wanted]
    started: float = 0.0
    finished: float = 0.0
    error: Exception | None = None
    slots: list[int] = field(init=False)
    late: list[int] = field(default_factory=list)
    """Of the slots: those that expired between the loop's decision and the device's start, and do not run."""

    def __post_init__(self) -> None:
        self.slots = [request.slot for request in self.requests]

    def start(self, now: float) -> tuple[list[int], list[Wanted]]:
        """What is to be run now: the slots whose deadline has not come, and what is wanted of them."""
        self.started = now
        pairs = [
            (request.slot, wanted)
            for request, wanted in zip(self.requests, self.wanted, strict=True)
            if request.deadline > now
        ]
        if len(pairs) == len(self.requests):
            return self.slots, self.wanted
        slots = [slot for slot, _ in pairs]
        self.late = [slot for slot in self.slots if slot not in slots]
        return slots, [wanted for _, wanted in pairs]


class DeviceThread:
    """Runs one batch after the other. ``fileno()`` becomes readable when one has finished.

    CUDA graphs and OpenMP teams belong to a thread, so it is always the same one.
    """

    def __init__(self, runner: Runner, arena: Arena, clock: Callable[[], float] = time.monotonic) -> None:
        self._runner = runner
        self._arena = arena
        self._clock = clock
        self._jobs: SimpleQueue[Batch | None] = SimpleQueue()
        self._done: SimpleQueue[Batch] = SimpleQueue()
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def fileno(self) -> int:
        return self._wake_read

    def submit(self, batch: Batch) -> None:
        self._jobs.put(batch)

    def collect(self) -> Batch:
        """The batch that has finished. Call it once for each time that ``fileno()`` is readable."""
        os.read(self._wake_read, 1)
        return self._done.get()

    def stop(self) -> None:
        """Lets the thread end after what it was given, and waits for that."""
        self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _work(self) -> None:
        while (batch := self._jobs.get()) is not None:
            self._run(batch)
            self._done.put(batch)
            os.write(self._wake_write, b"\0")

    def _run(self, batch: Batch) -> None:
        slots, wanted = batch.start(self._clock())
        try:
            if slots:
                self._runner.run(self._arena.pixels, slots, wanted, self._arena.results)
        except Exception as error:
            # The border of this thread: whatever a model raises is the batch's failure, not the engine's.
            log.exception("the model failed on a batch of %d", len(batch.requests))
            batch.error = error
        batch.finished = self._clock()
