"""Threads that go on until their block ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from service.images.decoders.threads import Threads

_PATIENCE = 120.0


class Crew:
    """To be used in a ``with`` statement. Each of ``targets`` gets a thread, and ends soon after ``_stop`` is set."""

    def __init__(self, *targets: Callable[[], object]) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=target) for target in targets]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(_PATIENCE)


@contextmanager
def threads(count: int) -> Iterator[Threads]:
    """Decoding threads until the block ends."""
    some = Threads(count)
    try:
        yield some
    finally:
        some.shutdown()
