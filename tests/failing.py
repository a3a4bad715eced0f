"""`python -m tests.failing serve …`: the service with a device that can be made to fail while it serves.

FAILING names a folder. A file ``lost`` there is a device that does not answer any more, ``wrong`` one that computes a
wrong canary from now on, ``full`` one whose memory is nearly used up; an engine that is started again waits
until the files are gone. ``faults`` holds how many engines lose their device before one gets ready.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import null
from service.cli.main import main
from service.engine import process
from service.observability.card import ModelCard
from service.settings import Settings
from service.shared.batches import CompletedBatch, DeviceFailed, Memory
from service.shared.fallback import Fallback
from service.shared.outputs import OutputRequest
from service.shared.transport import Channel

FOLDER = Path(os.environ.get("FAILING", "."))


class FailingRunner(null.NullRunner):
    def start(
        self,
        pixels: NDArray[np.uint8],
        slots: list[int],
        wanted: Sequence[OutputRequest],
        results: NDArray[np.float32],
    ) -> CompletedBatch:
        results[slots] = np.arange(self.results)
        return super().start(pixels, slots, wanted, results)

    def canary(self) -> CompletedBatch:
        if (FOLDER / "wrong").exists():
            raise DeviceFailed("the device gave wrong answers to the canary image twice", mismatches=2)
        return super().canary()

    def check(self) -> Memory:
        if (FOLDER / "lost").exists():
            raise DeviceFailed("CUDA error: an illegal memory access was encountered")
        return Memory(78 if (FOLDER / "full").exists() else 30, 80)


def load(
    settings: Settings, channel: Channel, given_up: Sequence[str] = ()
) -> tuple[FailingRunner, ModelCard]:
    """In place of `service.engine.process._load`."""
    if (FOLDER / "faults").exists() and len(given_up) < int((FOLDER / "faults").read_text()):
        raise DeviceFailed(f"CUDA error number {len(given_up)}")
    while {path.name for path in FOLDER.iterdir()} - {"faults"}:
        time.sleep(0.05)
    runner, card = null.load(settings, channel)
    fallbacks = tuple(Fallback(f"way {number}", reason) for number, reason in enumerate(given_up))
    return FailingRunner(runner.max_batch_size), replace(card, fallbacks=fallbacks)


if __name__ == "__main__":
    process._load = load  # type: ignore[assignment]
    main()
