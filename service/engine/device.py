"""The threads that run batches on the device. A byte on a pipe announces each finished batch.

`DeviceThread` runs batches in the same thread (`service.engine.owner.Owner`) that loaded the model and warmed it up.
`StreamThreads` runs single images side by side, on devices that can.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service.engine.arena import Arena
from service.engine.batcher import Request
from service.engine.owner import Owner
from service.shared.batches import BatchHandle, BatchReport, DeviceFailed, Memory
from service.shared.outputs import OutputRequest

log = logging.getLogger(__name__)

#: Seconds between two checks whether a running batch is done, while another batch may still join it on the device.
_POLL = 1e-4
#: Seconds between two checks of the device itself.
_CHECK_EVERY = 0.5


class Streams(Protocol):
    """The parts of a device that run single images independently of each other."""

    count: int

    def sooner(self, images: int) -> bool:
        """True if an idle device finishes this many images sooner in streams than as one batch."""

    def run(
        self,
        stream: int,
        pixels: NDArray[np.uint8],
        slot: int,
        want: OutputRequest,
        results: NDArray[np.float32],
    ) -> BatchReport:
        """Runs one image as `Runner.start` does, and waits for its end. Other threads run other streams meanwhile."""

    def canary(self, stream: int) -> BatchReport:
        """Runs the canary in one stream and waits for its end. Raises `DeviceFailed`."""


class Runner(Protocol):
    """The engine's interface to a model. `service.models` implements it, and tests/fakes.py with a hostile fake."""

    max_batch_size: int
    results: int
    """Length of the longest answer in float32."""

    @property
    def in_flight(self) -> int:
        """The number of batches that may be on the device together. They finish in the order of their starts."""

    @property
    def streams(self) -> Streams | None:
        """The device's streams; None if a batch always has the whole device. With streams, ``in_flight`` is 1."""

    def start(
        self,
        pixels: NDArray[np.uint8],
        slots: list[int],
        wanted: Sequence[OutputRequest],
        results: NDArray[np.float32],
    ) -> BatchHandle:
        """Starts a batch of ``pixels[slots]``, uint8 ``[slots, H, W, C]``. Results go to ``results[slots]``.

        ``wanted`` is the output of each slot. A synchronous device has computed everything when this returns.
        """

    def canary(self) -> BatchHandle:
        """Starts a pass over a known image.

        `BatchHandle.finish` compares its answer with the right one, and raises `DeviceFailed` if the device cannot be
        trusted.
        """

    def hurry(self) -> None:
        """Ends a running canary early if possible, since a request waits. Called from another thread."""

    def check(self) -> Memory:
        """Checks that the device works and returns its memory. Raises `DeviceFailed`."""


@dataclass
class Batch:
    """Requests that run together; without requests, the canary. Times are seconds of the monotonic clock."""

    number: int
    requests: list[Request]
    wanted: list[OutputRequest]
    stream: int | None = None
    """The stream of a single image; None for a batch on the whole device."""
    handed_over: float = 0.0
    started: float = 0.0
    finished: float = 0.0
    error: Exception | None = None
    ran: BatchReport | None = None
    """None for a batch that failed."""
    slots: list[int] = field(init=False)
    late: list[int] = field(default_factory=list)
    """The slots that expired between the loop's decision and the start on the device; they do not run."""

    def __str__(self) -> str:
        return "the canary" if self.is_canary else f"a batch of {len(self.requests)}"

    def __post_init__(self) -> None:
        self.slots = [request.slot for request in self.requests]

    @property
    def is_canary(self) -> bool:
        """True if it has no requests."""
        return not self.requests

    def start(self, now: float) -> tuple[list[int], list[OutputRequest]]:
        """Notes the start and returns the slots that have not expired, with the output that each wants."""
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
    """Runs batches in the order in which they are submitted. ``fileno()`` becomes readable when one has finished.

    The thread is that of ``owner``, which made and warmed up ``runner``, since cuDNN's tuning, CUDA's current device
    and OpenMP's teams belong to a thread. With None it is a new thread, for runners without such state. ``failed`` is
    the reason why the device must not be used any more; it is set before ``fileno()`` becomes readable for the last
    time.
    """

    def __init__(
        self,
        runner: Runner,
        arena: Arena,
        clock: Callable[[], float] = time.monotonic,
        owner: Owner | None = None,
    ) -> None:
        self.in_flight = runner.in_flight
        self.memory = Memory()
        self.failed = ""
        self._runner = runner
        self._arena = arena
        self._clock = clock
        self._jobs: SimpleQueue[Batch | None] = SimpleQueue()
        self._done: SimpleQueue[Batch | None] = SimpleQueue()
        self._running: deque[tuple[Batch, BatchHandle]] = deque()
        self._check_due = 0.0
        self._wake_read, self._wake_write = os.pipe()
        self._owner = owner or Owner("device")
        self._ended: Callable[[], None] = lambda: None
        self._rest = RestThread(self.tell)

    def start(self) -> None:
        self._rest.start()
        self._ended = self._owner.start(self._work)

    def fileno(self) -> int:
        return self._wake_read

    def submit(self, batch: Batch) -> None:
        self._jobs.put(batch)

    def collect(self) -> Batch | None:
        """Returns a finished batch, or None if only ``failed`` was set. Call it once for each byte on the pipe."""
        os.read(self._wake_read, 1)
        return self._done.get()

    def stop(self) -> None:
        """Ends the thread after the submitted batches. Waits for its end unless the device failed."""
        self._jobs.put(None)
        if self.failed:
            return  # a broken device may never finish its batch; the process ends anyway
        self._ended()
        self._rest.stop()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _work(self) -> None:
        while not self.failed:
            try:
                batch = self._jobs.get(timeout=_POLL if self._running else _CHECK_EVERY)
            except Empty:
                self._poll()
                continue
            if batch is None:
                break
            self._begin(batch)
            while self._running and (len(self._running) >= self.in_flight or self._running[0][1].done()):
                self._finish()
        while self._running:
            self._finish()

    def _poll(self) -> None:
        """Finishes the oldest batch if it is done; checks an idle device from time to time."""
        if self._running:
            if self._running[0][1].done():
                self._finish()
        elif self._clock() >= self._check_due:
            self._check()
            if self.failed:
                self.tell(None)

    def _begin(self, batch: Batch) -> None:
        slots, wanted = batch.start(self._clock())
        if not slots and not batch.is_canary:
            self._skip(batch)
            return
        try:
            runner, arena = self._runner, self._arena
            asked = batch.requests
            running = runner.start(arena.pixels, slots, wanted, arena.results) if asked else runner.canary()
        except Exception as error:
            # The border of this thread: whatever a model raises is the batch's failure, not the engine's.
            self._fail(batch, error)
            self._skip(batch)
            return
        self._running.append((batch, running))

    def _skip(self, batch: Batch) -> None:
        """Reports a batch that does not run, after all earlier ones, so that the order stays."""
        batch.finished = batch.finished or batch.started
        while self._running:
            self._finish()
        self.tell(batch)

    def _finish(self) -> None:
        batch, running = self._running.popleft()
        try:
            batch.ran = running.finish()
        except Exception as error:
            # The border of this thread, as in `_begin`.
            self._fail(batch, error)
        batch.finished = self._clock()
        self.failed = self.failed or _distrust(batch)
        if batch.finished >= self._check_due and not self.failed:
            self._check()
        if batch.ran is not None and batch.ran.rest is not None:
            self._rest.submit(batch)  # the device goes on meanwhile
        else:
            self.tell(batch)

    def _check(self) -> None:
        self._check_due = self._clock() + _CHECK_EVERY
        try:
            self.memory = self._runner.check()
        except DeviceFailed as error:
            self.failed = str(error)

    def _fail(self, batch: Batch, error: Exception) -> None:
        log.error("the model failed on %s", batch, exc_info=error)
        batch.error = error
        batch.finished = self._clock()

    def tell(self, batch: Batch | None) -> None:
        """Lets ``batch`` be collected. Safe in any thread."""
        if batch is not None:
            self.failed = self.failed or _distrust(batch)
        self._done.put(batch)
        os.write(self._wake_write, b"\0")


class RestThread:
    """Completes answers without the device (`BatchReport.rest`), then passes each batch to ``tell``.

    Until then the batch counts as running, so that no more batches can wait here than the device may have in flight.
    """

    def __init__(self, tell: Callable[[Batch], None]) -> None:
        self._tell = tell
        self._jobs: SimpleQueue[Batch | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="rest", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, batch: Batch) -> None:
        self._jobs.put(batch)

    def stop(self) -> None:
        """Ends the thread after the submitted batches, and waits for its end."""
        self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        while (batch := self._jobs.get()) is not None:
            try:
                assert batch.ran is not None
                assert batch.ran.rest is not None
                batch.ran.rest()
            except Exception as error:
                # The border of this thread: what fails here is the batch's failure, not the engine's.
                log.error(
                    "the answers to a batch of %d could not be made", len(batch.requests), exc_info=error
                )
                batch.error = error
            self._tell(batch)


class StreamThreads:
    """A thread for each stream. The caller gives a stream one image at a time; finished batches go to ``tell``."""

    def __init__(
        self, streams: Streams, arena: Arena, clock: Callable[[], float], tell: Callable[[Batch], None]
    ) -> None:
        self.free = list(range(streams.count))
        """The idle streams. Only the thread that submits may use it."""
        self._streams = streams
        self._arena = arena
        self._clock = clock
        self._tell = tell
        self._jobs: SimpleQueue[Batch | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"stream-{number}", daemon=True) for number in self.free
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def submit(self, batch: Batch) -> None:
        self._jobs.put(batch)

    def stop(self) -> None:
        """Ends the threads after the submitted batches, and waits for their end."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _work(self) -> None:
        while (batch := self._jobs.get()) is not None:
            self._run(batch)
            self._tell(batch)

    def _run(self, batch: Batch) -> None:
        assert batch.stream is not None
        slots, wanted = batch.start(self._clock())
        try:
            if batch.is_canary:
                batch.ran = self._streams.canary(batch.stream)
            elif slots:
                arena = self._arena
                batch.ran = self._streams.run(batch.stream, arena.pixels, slots[0], wanted[0], arena.results)
        except Exception as error:
            # The border of this thread: whatever a model raises is the image's failure, not the engine's.
            log.error("the model failed on %s", batch, exc_info=error)
            batch.error = error
        batch.finished = self._clock()


def _distrust(batch: Batch) -> str:
    """The reason in this batch why the device must not be used any more; empty if there is none."""
    if isinstance(batch.error, DeviceFailed):
        return str(batch.error)
    return batch.ran.distrust if batch.ran is not None else ""
