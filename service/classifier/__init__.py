"""Classifiers for the command line: one protocol, and two implementations.

evaluate, classify, demo ──▶ Classifier ◀── service.classifier.local    a model in this process
                                        ◀── service.classifier.remote   a server, over HTTP
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.labels import ClassLabel

#: A path, or the bytes of an encoded image.
Image = Path | bytes

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Identity:
    """The model that answers. ``top1`` and ``top5`` are its published accuracy in percent, or None."""

    model: str
    weights: str
    classes: tuple[ClassLabel, ...]
    top1: float | None = None
    top5: float | None = None


@dataclass(frozen=True)
class Classification:
    """The result for one image: its best classes, best first, or the error in words."""

    predictions: tuple[dict[str, Any], ...] = ()
    """Entries with the fields of `service.api.schemas.Prediction`."""
    error: str = ""
    milliseconds: float | None = None
    """The server's own measurement of the whole request; None without a server."""
    logits: NDArray[np.float32] | None = None
    """float32 ``[classes]``, or None unless the classifier was made to keep them."""


class Classifier(Protocol):
    """Maps images to their best classes."""

    @property
    def identity(self) -> Identity: ...

    def classify(self, images: Iterable[Image]) -> Iterator[Classification]:
        """Yields one result for each image, in their order. Takes images from the iterable as it needs them."""


def read(image: Image) -> bytes:
    """The encoded bytes of the image. Raises `OSError`."""
    return image if isinstance(image, bytes) else image.read_bytes()


def unreadable(error: OSError) -> Classification:
    """The result for a file that does not exist or cannot be read."""
    return Classification(error=(error.strerror or "cannot be read").lower())


def in_order(pool: Executor, work: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """Runs ``work`` for each item in the pool's threads and yields the results in the items' order.

    At most ``ahead`` results are begun and not yet yielded, so memory stays bounded for any number of items.
    """
    begun: deque[Future[R]] = deque()
    for item in items:
        if len(begun) >= ahead:
            yield begun.popleft().result()
        begun.append(pool.submit(work, item))
    while begun:
        yield begun.popleft().result()
