"""The real service around a model without cost, to measure the server alone.

    python -m benchmarks.null serve --port 8000        (the flags of `imagenet-serve serve`)

The engine's loader is replaced before the supervisor forks, so no setting of the service knows of this. With
BENCHMARK_NO_DECODE=1 decoding costs nothing either; the hand-over to a decoder stays.

BENCHMARK_FIXED_MS, _IMAGE_MS and _DECODE_MS give a batch, each of its images and each decoding a time that is slept
away: a server whose parts take what one says, on any machine (`benchmarks.check_simulation`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.cli.main import main
from service.engine import process
from service.labels import imagenet_classes
from service.models.watch import Watch
from service.observability.card import ModelCard
from service.preprocess import Preprocessing
from service.settings import Settings
from service.shared.batches import BatchReport, CompletedBatch, Memory
from service.shared.fallback import Fallback
from service.shared.outputs import OutputRequest
from service.shared.transport import Channel

_CLASSES = 1000


def _seconds(name: str) -> float:
    return float(os.environ.get(f"BENCHMARK_{name}_MS", 0)) / 1000


class NullRunner:
    """Takes any batch, sleeps for the given time, and leaves the slots' results unchanged."""

    results = _CLASSES
    in_flight = 1
    streams = None
    #: Images a second; only metrics and Retry-After use it.
    capacity = 1e5

    def __init__(self, max_batch_size: int) -> None:
        self.max_batch_size = max_batch_size
        self._fixed, self._image = _seconds("FIXED"), _seconds("IMAGE")
        self._watch = Watch(["null"])

    def start(
        self,
        pixels: NDArray[np.uint8],
        slots: list[int],
        wanted: Sequence[OutputRequest],
        results: NDArray[np.float32],
    ) -> CompletedBatch:
        self._watch.ran("null")
        return self._run(len(slots))

    def canary(self) -> CompletedBatch:
        self._watch.checked("null")
        return self._run(1, 1)

    def _run(self, images: int, canaries: int = 0) -> CompletedBatch:
        if self._fixed or self._image:
            time.sleep(self._fixed + images * self._image)
        return CompletedBatch(BatchReport(images, canaries=canaries, canary_due=self._watch.due))

    def hurry(self) -> None:
        """Does nothing: there is no work to stop."""

    def adopt(self, pixels: NDArray[np.uint8]) -> Sequence[Fallback]:
        return ()

    def check(self) -> Memory:
        return Memory()


def load(settings: Settings, channel: Channel, given_up: Sequence[str] = ()) -> tuple[NullRunner, ModelCard]:
    """Takes the place of `service.engine.process._load`."""
    largest = 64 if settings.max_batch_size == "auto" else settings.max_batch_size
    preprocessing = Preprocessing()
    card = ModelCard(
        name="null",
        family="densenet",
        parameters=0,
        weights="none",
        source="benchmarks/null.py",
        sha256=None,
        image=preprocessing.shape,
        preprocessing=preprocessing,
        classes=imagenet_classes(),
        feature_shape=(1024, 7, 7),
        activation="softmax",
        precision="fp32",
        device="cpu",
        runtime="none",
        max_batch_size=largest,
    )
    return NullRunner(largest), card


def _no_decode(*_: Any, **__: Any) -> None:
    """Takes the place of `service.preprocess.prepare`."""
    if seconds := _seconds("DECODE"):
        time.sleep(seconds)


if __name__ == "__main__":
    process._load = load  # type: ignore[assignment]
    if os.environ.get("BENCHMARK_NO_DECODE"):
        from service.images.decoders import picture

        picture.prepare = _no_decode  # type: ignore[assignment, attr-defined]
    main()
