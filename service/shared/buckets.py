"""Batch sizes that a device is prepared for: pure arithmetic, known to the models and to the metrics.

A CUDA graph has one shape, and another shape may run other kernels, which round otherwise. So there is a fixed set
of sizes, a batch runs in the smallest that holds it, and the rows that are over are padding.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Images in a forward pass. Dense where a few rows more cost little, sparse enough to be captured in seconds.
SIZES = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256)


def up_to(largest: int) -> tuple[int, ...]:
    """The sizes for batches of at most ``largest`` images, itself included."""
    return (*(size for size in SIZES if size < largest), largest)


def bucket_of(images: int, sizes: Sequence[int] = SIZES) -> int:
    """The smallest of ``sizes``, ascending, that holds ``images``; the largest where none does."""
    return next((size for size in sizes if size >= images), sizes[-1])


def chunks(images: int, largest: int) -> list[int]:
    """``images`` in parts of at most ``largest``: what is run one after the other."""
    return [min(largest, images - start) for start in range(0, images, largest)]
