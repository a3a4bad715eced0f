"""What classifies images for the command line.

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

#: A file, or the bytes of one.
Image = Path | bytes

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Identity:
    """Which model answers. ``top1`` and ``top5`` are its published accuracy in percent, where there is one."""

    model: str
    weights: str
    classes: tuple[ClassLabel, ...]
    top1: float | None = None
    top5: float | None = None


@dataclass(frozen=True)
class Seen:
    """What became of one image: its best classes, best first, or in words what is wrong with it."""

    predictions: tuple[dict[str, Any], ...] = ()
    """As `service.api.schemas.Prediction` describes them."""
    error: str = ""
    milliseconds: float | None = None
    """From the server's own clock, where a server has answered."""
    logits: NDArray[np.float32] | None = None
    """float32 ``[classes]``, where they were asked for."""


class Classifier(Protocol):
    """Images in, best classes out."""

    @property
    def identity(self) -> Identity: ...

    def look(self, images: Iterable[Image]) -> Iterator[Seen]:
        """One result for each image, in their order. Takes images as it goes."""


def read(image: Image) -> bytes:
    """The encoded bytes. Raises `OSError`."""
    return image if isinstance(image, bytes) else image.read_bytes()


def unreadable(error: OSError) -> Seen:
    """The result for a file that is not there or may not be read."""
    return Seen(error=(error.strerror or "cannot be read").lower())


def in_order(pool: Executor, work: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """``work`` of each item, done in the pool's threads and yielded in the items' order.

    Never more than ``ahead`` of them are begun and not yet taken: memory stays bounded however many there are.
    """
    begun: deque[Future[R]] = deque()
    for item in items:
        if len(begun) >= ahead:
            yield begun.popleft().result()
        begun.append(pool.submit(work, item))
    while begun:
        yield begun.popleft().result()
