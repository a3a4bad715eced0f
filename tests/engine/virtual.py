"""What random histories have in place of a clock, a device, a process's memory and threads that decode."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from service.engine.arena import Arena, Geometry
from service.engine.batcher import Request
from service.engine.canary import PAUSE, SHARE
from service.engine.device import Batch, DeviceThread
from service.images.decoders.threads import ThreadWriting
from service.shared.writing import Ended, Work
from tests.fakes import FakeRunner, VirtualClock

SLOTS, MOST = 6, 3
GEOMETRY = Geometry(SLOTS, 2, 2, 3, results=10)
GEOMETRY_IMAGE = (GEOMETRY.height, GEOMETRY.width, GEOMETRY.channels)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose timers follow a virtual clock."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._virtual = clock

    def time(self) -> float:
        return self._virtual.now

    def turn(self) -> None:
        """Runs what is due now. Never sleeps: something is always ready while the coroutine is."""

        async def some_turns() -> None:
            for _ in range(4):
                await asyncio.sleep(0)

        self.run_until_complete(some_turns())


class ManualDevice(DeviceThread):
    """Runs a batch when told to, in the thread that says so. Remembers what it was given and when."""

    def __init__(self, runner: FakeRunner, arena: Arena, clock: VirtualClock) -> None:
        super().__init__(runner, arena, clock)
        self.runner, self.clock = runner, clock
        self.given: Batch | None = None
        self.patience = PAUSE
        """Seconds of silence after which the canary runs: it is to take a small part of the time."""

    def start(self) -> None:
        """There is no thread."""

    def stop(self) -> None:
        """Leaves nothing open, failed or not."""
        self._jobs.put(None)
        os.close(self._wake_read)
        os.close(self._wake_write)

    def submit(self, batch: Batch) -> None:
        assert self.given is None, "two batches at once"
        late = [request for request in batch.requests if request.deadline <= self._clock()]
        assert not late, "expired work reached the device"
        self.judge_priority(batch)
        self.given = batch

    waiting: Callable[[], list[Request]] = staticmethod(list)
    """Who else waits when a batch is handed over."""

    def judge_priority(self, batch: Batch) -> None:
        now = self._clock()
        bulk = [request for request in batch.requests if request.bulk and now < request.ages_at]
        if bulk:
            assert len(batch.requests) == len(bulk) == 1, "bulk rides with others"
            urgent = [request for request in self.waiting() if not request.bulk and request.deadline > now]
            assert not urgent, "bulk ran before others"

    def finish(self, before: float = 0.0, during: float = 0.0) -> None:
        """Starts the batch ``before`` seconds late, as a thread may, and runs it for ``during``."""
        batch = self.given
        assert batch is not None
        self.given = None
        self.clock.advance(before)
        run = len(self.runner.batches)
        self._begin(batch)
        due = [request.slot for request in batch.requests if request.deadline > batch.started]
        assert self.runner.batches[run:] == ([due] if due else []), "expired work ran"
        self.clock.advance(during)
        if batch.is_canary:
            self.patience = max(PAUSE, during / SHARE)
        if due or batch.is_canary:  # else it is answered already
            self._finish()


class MortalArena(Arena):
    """A front-end's mapping, which a killed process does not write to any more."""

    dead = False

    def release(self, slot: int) -> None:
        if not self.dead:
            super().release(slot)


class Decodes:
    """The decoders of a front-end: what is decoded waits in ``jobs`` until it is called."""

    stuck = False

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []

    def begin(self, work: Work, pixels: NDArray[np.uint8], ended: Ended) -> ThreadWriting:
        writing = ThreadWriting(asyncio.get_running_loop(), work, pixels, ended)
        self.jobs.append(writing)
        return writing

    def submit(self, job: Callable[[], object], /) -> None:
        raise AssertionError("nothing but images is decoded here")
