"""Stand-ins that are real implementations, and hostile: a swapped, lost or late answer shows."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.task import Explain, Wanted

#: Positions of the fake map; the first says which class was explained.
FAKE_MAP = 4


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
    may_run: threading.Event = field(default_factory=threading.Event)
    """A batch waits for it after it was started; set from the beginning."""
    batches: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.may_run.set()

    def run(
        self,
        pixels: NDArray[np.uint8],
        slots: list[int],
        wanted: Sequence[Wanted],
        results: NDArray[np.float32],
    ) -> None:
        assert 1 <= len(slots) <= self.max_batch_size, f"a batch of {len(slots)}"
        assert len(set(slots)) == len(slots), "a slot twice in one batch"
        self.batches.append(slots)
        assert self.may_run.wait(60)
        time.sleep(self.delay)
        if self.error is not None:
            raise self.error
        for slot in reversed(slots):
            answer = fingerprint(pixels[slot], self.results)
            if self.not_a_number:
                answer[:] = np.nan
            want = wanted[slots.index(slot)]
            if isinstance(want, Explain):
                index = int(answer.argmax()) if want.class_index is None else want.class_index
                answer = np.append(answer, index - np.arange(FAKE_MAP, dtype=np.float32))
            else:
                answer += 1000 * want
            results[slot, : len(answer)] = answer
