"""Checks that a device computes the network: every bucket of a runner against the network in fp32 on the CPU."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from service.cli.bench.run import synthetic_photo
from service.models import loader
from service.models.canary import LIMITS, distance
from service.models.checkpoints import Checkpoint
from service.models.cuda.pipeline import CudaRunner
from service.shared.outputs import OutputKind

Pixels = NDArray[np.uint8]
Logits = NDArray[np.float32]

_SAMPLES = Path(__file__).parent.parent / "samples"
#: Share of the images with an fp32 margin above the error that must keep their top class.
LEAST_AGREEMENT = 0.999


@dataclass
class Check:
    """The result of a check of one runner, over all its buckets."""

    images: int = 0
    distance: float = 0.0
    """The largest ``‖out - ref‖ / ‖ref‖`` of any image in any bucket."""
    worst_bucket: int = 0
    clear: int = 0
    """Number of images whose margin exceeds the error."""
    agree: int = 0
    """Number of these images that keep their top class."""
    padding: bool = True
    """True if the padding does not change a bit of the real rows."""

    def passed(self, precision: str) -> bool:
        agreed = not self.clear or self.agree >= LEAST_AGREEMENT * self.clear
        return self.distance <= LIMITS[precision] and agreed and self.padding

    def row(self, precision: str) -> dict[str, Any]:
        return {
            "distance": float(f"{self.distance:.2g}"),
            "limit": LIMITS[precision],
            "worst bucket": self.worst_bucket,
            "top-1 of clear": f"{self.agree}/{self.clear}",
            "padding": "same" if self.padding else "CHANGES ROWS",
            "check": "passed" if self.passed(precision) else "FAILED",
        }


def photos(count: int, shape: tuple[int, int, int]) -> Pixels:
    """Returns different windows of the sample photos and of generated ones, uint8 ``[count, H, W, 3]``."""
    files = [*(path.read_bytes() for path in sorted(_SAMPLES.glob("*.jpg"))), synthetic_photo(900, 700)]
    sources = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in files]
    chance = np.random.default_rng(5)
    found = np.empty((count, *shape), np.uint8)
    for number in range(count):
        source = sources[number % len(sources)]
        top, left = (
            int(chance.integers(0, side - size + 1))
            for side, size in zip(source.shape[:2], shape[:2], strict=True)
        )
        found[number] = source[top : top + shape[0], left : left + shape[1]]
    return found


@torch.inference_mode()
def reference(checkpoint: Checkpoint, pixels: Pixels) -> Logits:
    """Returns float32 ``[N, classes]`` of the plain network on the CPU in fp32."""
    model = loader.load(checkpoint)
    parts = [model(torch.from_numpy(pixels[start : start + 16])) for start in range(0, len(pixels), 16)]
    answer: Logits = torch.cat(parts).numpy()
    return answer


def check(runner: CudaRunner, pixels: Pixels, expected: Logits) -> Check:
    """Checks every bucket, full and with padding. ``pixels`` and ``expected`` repeat in larger buckets."""
    found, largest = Check(), runner.limit
    index = np.arange(largest) % len(pixels)
    arena, wanted = pixels[index], expected[index]
    results = np.zeros((largest, runner.results), np.float32)
    for bucket in runner.buckets:
        for images in {bucket, max(1, bucket - 1)}:
            slots = list(range(images))
            runner.run(arena, slots, [OutputKind.CLASSIFY] * images, results)
            _judge(found, bucket, results[:images, : wanted.shape[1]], wanted[:images])
    found.padding = _padding_is_padding(runner, arena, wanted.shape[1])
    return found


def _judge(found: Check, bucket: int, got: Logits, wanted: Logits) -> None:
    for answer, right in zip(got, wanted, strict=True):
        away = distance(answer, right)
        if away > found.distance:
            found.distance, found.worst_bucket = away, bucket
        second, first = np.partition(right, -2)[-2:]
        found.images += 1
        # Two logits can each be off by the largest error of this image.
        if first - second > 2 * float(np.abs(answer - right).max()):
            found.clear += 1
            found.agree += int(answer.argmax() == right.argmax())


def _padding_is_padding(runner: CudaRunner, arena: Pixels, classes: int) -> bool:
    """Compares the largest bucket, not quite full, after other batches have left their pixels in its padding.

    The padding needs at least two rows, since the first one is the canary's.
    """
    largest = runner.limit
    images = max((size for size in runner.buckets if size < largest), default=0) + 1
    if largest - images < 2:
        return True
    answers = []
    for other in (arena, 255 - arena):
        results = np.zeros((largest, runner.results), np.float32)
        for pixels, count in ((other, largest), (arena, images)):
            runner.run(pixels, list(range(count)), [OutputKind.CLASSIFY] * count, results)
        answers.append(results[:images, :classes].copy())
    return bool((answers[0] == answers[1]).all())
