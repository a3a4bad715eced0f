"""The threads that own the device: batches in, finished batches out, a byte on a pipe for each.

`DeviceThread` runs batches, in the one `service.engine.owner.Owner` that also loaded the model and warmed it up;
`StreamThreads` runs single images side by side where a device can.
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

#: Seconds between two looks at a batch that runs, while another may still arrive beside it.
_POLL = 1e-4
#: Seconds between two looks at the device itself.
_CHECK_EVERY = 0.5


class Streams(Protocol):
    """A device in parts: each stream runs one image at a time and takes the next one without waiting for the others."""

    count: int

    def sooner(self, images: int) -> bool:
        """Whether this many, on a device that has nothing else to do, run sooner in streams than as one batch."""

    def run(
        self,
        stream: int,
        pixels: NDArray[np.uint8],
        slot: int,
        want: OutputRequest,
        results: NDArray[np.float32],
    ) -> BatchReport:
        """What `Runner.start` starts, done, for one image. Other threads run other streams at the same time."""

    def canary(self, stream: int) -> BatchReport:
        """What `Runner.canary` starts, done, in one stream. Raises `DeviceFailed`."""


class Runner(Protocol):
    """What the engine wants of a model. `service.models` has the real ones, tests/fakes.py a hostile one."""

    max_batch_size: int
    results: int
    """Length of the longest answer in float32."""

    @property
    def in_flight(self) -> int:
        """Batches that may be on the device at once. They finish in the order in which they were started."""

    @property
    def streams(self) -> Streams | None:
        """None where a batch always has the whole device; with streams, ``in_flight`` is 1."""

    def start(
        self,
        pixels: NDArray[np.uint8],
        slots: list[int],
        wanted: Sequence[OutputRequest],
        results: NDArray[np.float32],
    ) -> BatchHandle:
        """Starts ``pixels[slots]`` (uint8 ``[slots, H, W, C]``); what is ``wanted`` goes to ``results[slots]``.

        A device that only computes while it is waited for has done everything when this returns.
        """

    def canary(self) -> BatchHandle:
        """Starts a pass over a known image. Its answer is compared with the right one when the pass is finished, which
        raises `DeviceFailed` for a device that is not to be trusted."""

    def hurry(self) -> None:
        """Somebody waits: lets the canary that runs end early, if that can be. Called in another thread."""

    def check(self) -> Memory:
        """The device's memory, as a sign of its life. Raises `DeviceFailed`."""


@dataclass
class Batch:
    """Requests that run together, or without any the canary. Times are seconds of the monotonic clock."""

    number: int
    requests: list[Request]
    wanted: list[OutputRequest]
    stream: int | None = None
    """Where this one image runs on its own; None for a batch that has the whole device."""
    handed_over: float = 0.0
    started: float = 0.0
    finished: float = 0.0
    error: Exception | None = None
    ran: BatchReport | None = None
    """None for a batch that failed."""
    slots: list[int] = field(init=False)
    late: list[int] = field(default_factory=list)
    """Of the slots: those that expired between the loop's decision and the device's start, and do not run."""

    def __str__(self) -> str:
        return "the canary" if self.is_canary else f"a batch of {len(self.requests)}"

    def __post_init__(self) -> None:
        self.slots = [request.slot for request in self.requests]

    @property
    def is_canary(self) -> bool:
        """Whether nobody asked for it."""
        return not self.requests

    def start(self, now: float) -> tuple[list[int], list[OutputRequest]]:
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
    """Runs batches in the order in which they come. ``fileno()`` becomes readable when one has finished.

    cuDNN's tuning, CUDA's current device and OpenMP's teams belong to a thread, so that it is ``owner``, which has
    made and warmed up ``runner``; None is for a runner that does not mind. ``failed`` says why the device is not to
    be used any more; it is set before the last ``fileno()`` becomes readable.
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
        """The batch that has finished; None when only ``failed`` was set. Once for each time it is readable."""
        os.read(self._wake_read, 1)
        return self._done.get()

    def stop(self) -> None:
        """Lets the thread end after what it was given, and waits for that unless the device failed."""
        self._jobs.put(None)
        if self.failed:
            return  # whatever a broken device still does, nobody waits for it; the process ends
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
        """Nothing has arrived: the oldest batch may be done, and an idle device may have failed."""
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
        """It does not run. Answers come in the order of their batches."""
        batch.finished = batch.finished or batch.started
        while self._running:
            self._finish()
        self.tell(batch)

    def _finish(self) -> None:
        batch, running = self._running.popleft()
        try:
            batch.ran = running.finish()
        except Exception as error:
            # The same border.
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
    """Does what is left of answers when the device is done with them (`BatchReport.rest`); ``tell`` hears of each end.

    Until then their batch counts as running, so that no more is left lying here than the device may have in flight.
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
        """Lets the thread end after what it was given, and waits for that."""
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
    """A thread for each stream. The caller gives a stream one image at a time; ``tell`` is called with each batch
    that has ended."""

    def __init__(
        self, streams: Streams, arena: Arena, clock: Callable[[], float], tell: Callable[[Batch], None]
    ) -> None:
        self.free = list(range(streams.count))
        """Streams that have nothing to do. Belongs to the one who submits."""
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
        """Lets the threads end after what they were given, and waits for that."""
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
    """Why the device is not to be used any more, as far as this batch tells."""
    if isinstance(batch.error, DeviceFailed):
        return str(batch.error)
    return batch.ran.distrust if batch.ran is not None else ""
