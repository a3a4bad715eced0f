"""Stand-ins that are real implementations, and hostile: a swapped, lost or late answer shows."""

from __future__ import annotations

import threading
import time
import zlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.task import Task


class VirtualClock:
    """Seconds that pass only when told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def fingerprint(pixels: NDArray[np.uint8], results: int) -> NDArray[np.float32]:
    """What `FakeRunner` answers to an image: another one for any other pixels, exact in float32."""
    checksum = zlib.crc32(np.ascontiguousarray(pixels))
    return np.array([(checksum >> (index % 25)) & 0x7F for index in range(results)], np.float32)


@dataclass
class FakeRunner:
    """A runner whose answer is a function of the pixels. ``delay`` seconds a batch, as a model takes them."""

    max_batch_size: int = 8
    results: int = 10
    delay: float = 0.0
    error: Exception | None = None
    """Raised by every batch while it is set."""
    not_a_number: bool = False
    lane_count: int = 0
    """Lanes, which two images that wait together prefer."""
    may_run: threading.Event = field(default_factory=threading.Event)
    """A batch waits for it after it was started; set from the beginning."""
    batches: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.may_run.set()
        self.lanes = FakeLanes(self, self.lane_count) if self.lane_count else None

    def run(
        self, pixels: NDArray[np.uint8], slots: list[int], tasks: list[Task], results: NDArray[np.float32]
    ) -> None:
        assert 1 <= len(slots) <= self.max_batch_size, f"a batch of {len(slots)}"
        assert len(set(slots)) == len(slots), "a slot twice in one batch"
        assert self.lanes is None or not self.lanes.busy, "a batch beside images in lanes"
        self.batches.append(slots)
        assert self.may_run.wait(60)
        self.compute(pixels, slots, tasks, results)

    def compute(
        self, pixels: NDArray[np.uint8], slots: list[int], tasks: list[Task], results: NDArray[np.float32]
    ) -> None:
        """What every batch comes to."""
        time.sleep(self.delay)
        if self.error is not None:
            raise self.error
        for slot in reversed(slots):
            answer = np.nan if self.not_a_number else fingerprint(pixels[slot], self.results)
            results[slot] = answer + 1000 * tasks[slots.index(slot)]


class FakeLanes:
    """A `FakeRunner` in parts. Images whose first byte is `STUCK` wait for ``may_leave``, others do not."""

    STUCK = 255

    def __init__(self, runner: FakeRunner, count: int) -> None:
        self.count = count
        self.busy: set[int] = set()
        self.may_leave = threading.Event()
        self.may_leave.set()
        self._runner = runner

    def sooner(self, images: int) -> bool:
        return images >= 2

    def run(
        self, lane: int, pixels: NDArray[np.uint8], slot: int, task: Task, results: NDArray[np.float32]
    ) -> None:
        assert 0 <= lane < self.count
        assert lane not in self.busy, "two images in one lane"
        self.busy.add(lane)
        try:
            assert pixels[slot].flat[0] != self.STUCK or self.may_leave.wait(60)
            self._runner.compute(pixels, [slot], [task], results)
        finally:
            self.busy.remove(lane)
