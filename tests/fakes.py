"""Stand-ins that are real implementations, and hostile: a swapped, lost or late answer shows."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from service.models.watch import Trust, Watch
from service.shared.batches import BatchHandle, BatchReport, DeviceFailed, Memory
from service.shared.outputs import Explain, OutputRequest

#: Positions of the fake map; the first says which class was explained.
FAKE_MAP = 4
#: What a wrong pass adds to every number.
WRONG = 1000.0


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
    checksum = zlib.crc32(pixels.tobytes())
    return np.array([(checksum >> (index % 25)) & 0x7F for index in range(results)], np.float32)


@dataclass
class FakeRunner:
    """A runner whose answer is a function of the pixels. ``delay`` seconds a batch, as a model takes them."""

    max_batch_size: int = 8
    results: int = 10
    in_flight: int = 1
    delay: float = 0.0
    error: Exception | None = None
    """Raised by every batch while it is set."""
    not_a_number: bool = False
    offset: float = 0.0
    """Added to every answer: other weights."""
    mismatches: int = 0
    distrust: str = ""
    broken: str = ""
    """What `check` says of the device while it is set."""
    memory: Memory = field(default_factory=Memory)
    may_run: threading.Event = field(default_factory=threading.Event)
    """A batch waits for it after it was started; set from the beginning."""
    batches: list[list[int]] = field(default_factory=list)
    running: int = 0
    maps_wait_for: threading.Event | None = None
    """With it, maps are what is left to do after the device (`BatchReport.rest`), and wait for it."""
    stream_count: int = 0
    """Streams, which two images that wait together prefer."""
    wrong: float = 0
    """Passes to come whose numbers are wrong, the canary's among them."""
    wrongs: int = 0
    """Passes that were wrong, but for the canary's."""
    hurried: bool = False
    """Whether the canary that runs, or is about to, ends without having been looked at."""
    watch: Watch[str] = field(default_factory=lambda: Watch(["fake"]))
    trust: Trust = field(default_factory=Trust)

    def __post_init__(self) -> None:
        self.may_run.set()
        self.streams = FakeStreams(self, self.stream_count) if self.stream_count else None

    def start(
        self,
        pixels: NDArray[np.uint8],
        slots: list[int],
        wanted: Sequence[OutputRequest],
        results: NDArray[np.float32],
    ) -> FakeRunning:
        assert 1 <= len(slots) <= self.max_batch_size, f"a batch of {len(slots)}"
        assert len(set(slots)) == len(slots), "a slot twice in one batch"
        assert self.streams is None or not self.streams.busy, "a batch beside images in streams"
        self.running += 1
        assert self.running <= self.in_flight, f"{self.running} batches at once"
        self.batches.append(slots)
        return FakeRunning(self, pixels, slots, wanted, results)

    def canary(self) -> BatchHandle:
        assert self.streams is None or not self.streams.busy, "the canary beside images in streams"
        self.running += 1
        assert self.running <= self.in_flight, f"{self.running} batches at once"
        return FakeCanary(self, np.empty((0, 0, 0, 0), np.uint8), [], [], np.empty((0, 0), np.float32))

    def hurry(self) -> None:
        self.hurried = True

    def goes_wrong(self) -> bool:
        """Whether this pass does."""
        wrong = self.wrong > 0
        self.wrong -= wrong
        return wrong

    def look(self) -> BatchReport:
        """What the canary comes to."""
        try:
            ran = self.trust.judge(self.goes_wrong(), 1, self.goes_wrong)
        finally:
            self.watch.checked("fake")
        return replace(ran, rows=1)

    def check(self) -> Memory:
        if self.broken:
            raise DeviceFailed(self.broken)
        return self.memory


@dataclass
class FakeRunning:
    """Reads the pixels as late as a device could: a slot that was given away too early shows."""

    runner: FakeRunner
    pixels: NDArray[np.uint8]
    slots: list[int]
    wanted: Sequence[OutputRequest]
    results: NDArray[np.float32]
    ready_at: float = 0.0

    def __post_init__(self) -> None:
        self.ready_at = time.monotonic() + self.runner.delay

    def done(self) -> bool:
        return self.runner.may_run.is_set() and time.monotonic() >= self.ready_at

    def finish(self) -> BatchReport:
        runner = self.runner
        assert runner.may_run.wait(60)
        time.sleep(max(0.0, self.ready_at - time.monotonic()))
        runner.running -= 1
        if runner.maps_wait_for is None or not any(isinstance(want, Explain) for want in self.wanted):
            return self.compute()
        return BatchReport(len(self.slots), runner.mismatches, runner.distrust, rest=self.late)

    def late(self) -> None:
        """All of it, once that is allowed."""
        assert self.runner.maps_wait_for is not None
        assert self.runner.maps_wait_for.wait(60)
        self.compute()

    def compute(self) -> BatchReport:
        """What every batch comes to, after its delay."""
        runner = self.runner
        time.sleep(max(0.0, self.ready_at - time.monotonic()))
        if runner.error is not None:
            raise runner.error
        wrong = runner.goes_wrong()
        runner.wrongs += wrong
        runner.watch.ran("fake")
        for slot, want in reversed(list(zip(self.slots, self.wanted, strict=True))):
            answer = fingerprint(self.pixels[slot], runner.results) + wrong * WRONG
            answer += np.float32(runner.offset)
            if runner.not_a_number:
                answer[:] = np.nan
            if isinstance(want, Explain):
                index = int(answer.argmax()) if want.class_index is None else want.class_index
                answer = np.append(answer, index - np.arange(FAKE_MAP, dtype=np.float32))
            else:
                answer += 1000 * want
            self.results[slot, : len(answer)] = answer
        due = runner.watch.due
        return BatchReport(len(self.slots), runner.mismatches, runner.distrust, canary_due=due)


class FakeCanary(FakeRunning):
    def compute(self) -> BatchReport:
        time.sleep(max(0.0, self.ready_at - time.monotonic()))
        hurried, self.runner.hurried = self.runner.hurried, False
        return BatchReport(0) if hurried else self.runner.look()


class FakeStreams:
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
        self,
        stream: int,
        pixels: NDArray[np.uint8],
        slot: int,
        want: OutputRequest,
        results: NDArray[np.float32],
    ) -> BatchReport:
        with self._taken(stream):
            assert pixels[slot].flat[0] != self.STUCK or self.may_leave.wait(60)
            return FakeRunning(self._runner, pixels, [slot], [want], results).compute()

    def canary(self, stream: int) -> BatchReport:
        with self._taken(stream):
            return self._runner.look()

    @contextmanager
    def _taken(self, stream: int) -> Iterator[None]:
        assert 0 <= stream < self.count
        assert stream not in self.busy, "two images in one stream"
        assert not self._runner.running, "an image in a stream beside a batch"
        self.busy.add(stream)
        try:
            yield
        finally:
            self.busy.remove(stream)
