"""The batch sizes that a device is prepared for: pure arithmetic, used by the models and the metrics.

A CUDA graph has one shape, and other shapes may run other kernels, which round differently. So there is a fixed set of
sizes, the buckets. A batch runs in the smallest bucket that holds it; the remaining rows are padding.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Images in a forward pass. Few enough that all are captured in seconds, dense enough that padding costs little.
SIZES = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256)


def up_to(largest: int) -> tuple[int, ...]:
    """The sizes for batches of at most ``largest`` images: those of `SIZES` below it, and ``largest`` itself."""
    return (*(size for size in SIZES if size < largest), largest)


def bucket_of(images: int, sizes: Sequence[int] = SIZES) -> int:
    """The smallest of the ascending ``sizes`` that holds ``images``; the largest size if none does."""
    return next((size for size in sizes if size >= images), sizes[-1])


def chunks(images: int, largest: int) -> list[int]:
    """Splits a number of images into parts of at most ``largest``, to be run one after the other."""
    return [min(largest, images - start) for start in range(0, images, largest)]
