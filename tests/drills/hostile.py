"""The real service around a model that does what an image tells it to: answers, hangs, raises, ends its process.

    python -m tests.drills.hostile serve --port 8000        (the flags of `imagenet-serve serve`)

The engine's loader is replaced before the supervisor forks, so no setting of the service knows of this. Nothing here
imports torch, so a service starts within a second. An image of one colour throughout, one of `Trick`, plays a
trick on the batch that it is in; to any other the answer is a function of its pixels and of the weights
(`class_of`): each random:SEED answers SEED classes further on.

HOSTILE_FIXED_MS, _IMAGE_MS: what a batch and each image in it take. HOSTILE_SLOW_MS: what a slow image adds.
HOSTILE_LIMIT_S: when a batch is taken for hung, instead of the service's own limit. HOSTILE_SILENCE_S: the same for
a process that says nothing. HOSTILE_LOADS: a file; the second load hangs. HOSTILE_LOAD_MS: what a load takes.
"""

from __future__ import annotations

import io
import os
import signal
import threading
import time
import zlib
from collections.abc import Sequence
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.cli.main import main
from service.engine import process
from service.errors import CheckpointError
from service.images.decoders import picture
from service.labels import imagenet_classes
from service.observability.card import ModelCard
from service.preprocess import Preprocessing, prepare
from service.settings import Settings
from service.shared.batches import BatchReport, CompletedBatch, Memory
from service.shared.fallback import Fallback
from service.shared.outputs import OutputRequest
from service.shared.transport import Channel
from service.supervisor.lifecycle import lifecycle

SIDE = 16
CLASSES = 1000
#: Seeds of random weights that answer NaN, that cannot be loaded, and whose load ends its process.
BROKEN, MISSING, DEADLY = 901, 902, 903
PREPROCESSING = Preprocessing(resize=SIDE, crop=(SIDE, SIDE))
_LARGEST = 8


class Trick(Enum):
    """The colour that plays it."""

    NAN = (250, 1, 1)
    """Its own logits are no numbers."""
    INFINITY = (250, 1, 2)
    RAISE = (250, 1, 3)
    MEMORY = (250, 1, 4)
    """The model says that there is no memory."""
    HANG = (250, 1, 5)
    """The batch never ends."""
    SLOW = (250, 1, 6)
    EXIT = (250, 1, 7)
    """The engine's process ends, as by a fault in native code."""


_TRICKS = {trick.value: trick for trick in Trick}


#: Files whose decode never ends, and ends its process: what no reader of today does, and one of tomorrow may.
ENDLESS, CRASH = (b"\x89PNG\r\n\x1a\n" + word for word in (b"without end", b"crash"))


def decode_or_play(data: Any, *arguments: Any, **options: Any) -> Any:
    """In place of `service.preprocess.prepare`, in the decoders."""
    if data == ENDLESS:
        while True:
            pass
    if data == CRASH:
        os.kill(os.getpid(), signal.SIGSEGV)
    return prepare(data, *arguments, **options)


def trick_image(trick: Trick) -> bytes:
    """A PNG that plays ``trick``."""
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), trick.value).save(buffer, "PNG")
    return buffer.getvalue()


def class_of(data: bytes, weights: str = "none") -> int:
    """What the model with these ``weights`` answers to an image file."""
    pixels = np.empty(PREPROCESSING.shape, np.uint8)
    prepare(data, PREPROCESSING, pixels, max_pixels=10**7)
    return (_class(pixels) + shift(weights)) % CLASSES


def shift(weights: str) -> int:
    """How many classes further on these weights answer."""
    name, _, seed = weights.partition(":")
    return int(seed or 0) if name == "random" else 0


def _class(pixels: NDArray[np.uint8]) -> int:
    return zlib.crc32(pixels.tobytes()) % CLASSES


def _trick(pixels: NDArray[np.uint8]) -> Trick | None:
    first = pixels[0, 0]
    return _TRICKS.get(tuple(first.tolist())) if (pixels == first).all() else None


class HostileRunner:
    """See the head of this file."""

    results = CLASSES
    in_flight = 1
    streams = None

    def __init__(self, max_batch_size: int, weights: str = "none") -> None:
        self.max_batch_size = max_batch_size
        self._shift = shift(weights)
        self._broken = weights == f"random:{BROKEN}"
        self._fixed, self._image, self._slow = (seconds(name) for name in ("FIXED_MS", "IMAGE_MS", "SLOW_MS"))
        self.capacity = max_batch_size / max(1e-4, self._fixed + max_batch_size * self._image)

    def start(
        self,
        pixels: NDArray[np.uint8],
        slots: list[int],
        wanted: Sequence[OutputRequest],
        results: NDArray[np.float32],
    ) -> CompletedBatch:
        assert 1 <= len(slots) <= self.max_batch_size
        tricks = {slot: trick for slot in slots if (trick := _trick(pixels[slot]))}
        played = set(tricks.values())
        if Trick.EXIT in played:
            os._exit(70)
        if Trick.HANG in played:
            threading.Event().wait()
        time.sleep(self._fixed + len(slots) * self._image + self._slow * (Trick.SLOW in played))
        if Trick.RAISE in played:
            raise RuntimeError("a defect of the model's, with /secret/path in it")
        if Trick.MEMORY in played:
            raise MemoryError("out of memory: tried to allocate 80 GiB")
        for slot in slots:
            results[slot] = 0
            results[slot, (_class(pixels[slot]) + self._shift) % CLASSES] = 20
            if self._broken:
                results[slot, 0] = np.nan
            if tricks.get(slot) is Trick.NAN:
                results[slot, 7] = np.nan
            if tricks.get(slot) is Trick.INFINITY:
                results[slot, 7] = -np.inf
        return CompletedBatch(BatchReport(len(slots)))

    def canary(self) -> CompletedBatch:
        return CompletedBatch(BatchReport(1, canaries=1))

    def hurry(self) -> None:
        """There is nothing to be hurried."""

    def adopt(self, pixels: NDArray[np.uint8]) -> Sequence[Fallback]:
        return ()

    def check(self) -> Memory:
        return Memory()


def seconds(name: str) -> float:
    """One of the variables above; milliseconds become seconds."""
    return float(os.environ.get(f"HOSTILE_{name}", 0)) / (1000 if name.endswith("_MS") else 1)


def load(
    settings: Settings, channel: Channel, given_up: Sequence[str] = ()
) -> tuple[HostileRunner, ModelCard]:
    """In place of `service.engine.process._load`."""
    _hang_the_second_time()
    if settings.weights == f"random:{MISSING}":
        raise CheckpointError("there are no such weights, as a test wants it")
    if settings.weights == f"random:{DEADLY}":
        os.kill(os.getpid(), signal.SIGKILL)
    if seconds("LOAD_MS"):
        time.sleep(seconds("LOAD_MS"))
    largest = _LARGEST if settings.max_batch_size == "auto" else settings.max_batch_size
    card = ModelCard(
        name="hostile",
        family="densenet",
        parameters=0,
        weights=settings.weights if settings.weights.startswith("random:") else "none",
        source="tests/drills/hostile.py",
        sha256=None,
        image=PREPROCESSING.shape,
        preprocessing=PREPROCESSING,
        classes=imagenet_classes(),
        feature_shape=(CLASSES, 1, 1),
        activation="softmax",
        precision="fp32",
        device="cpu",
        runtime="none",
        max_batch_size=largest,
    )
    return HostileRunner(largest, settings.weights), card


def _hang_the_second_time() -> None:
    """If HOSTILE_LOADS names a file: it keeps count."""
    if name := os.environ.get("HOSTILE_LOADS"):
        with open(name, "a+b") as count:
            count.write(b"x")
            loads = count.tell()
        if loads == 2:
            threading.Event().wait()


if __name__ == "__main__":
    process._load = load  # type: ignore[assignment]
    picture.prepare = decode_or_play  # type: ignore[attr-defined]
    process.MIN_BATCH_LIMIT = seconds("LIMIT_S") or process.MIN_BATCH_LIMIT
    lifecycle.SILENCE = seconds("SILENCE_S") or lifecycle.SILENCE
    main()
