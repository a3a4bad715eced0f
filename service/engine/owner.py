"""One thread that does what it is given, one after the other: whatever belongs to a thread stays with it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

Result = TypeVar("Result")


class Owner:
    """The thread ``name``, which begins with the first call and never keeps the process from ending."""

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def call(self, function: Callable[[], Result]) -> Result:
        """What ``function`` returns, or raises, in the thread."""
        return self._give(function).result()

    def start(self, function: Callable[[], None]) -> Callable[[], None]:
        """Lets the thread begin with ``function``; what is returned waits for its end."""
        return self._give(function).result

    def _give(self, function: Callable[[], Result]) -> Future[Result]:
        if not self._thread.is_alive():
            self._thread.start()
        future: Future[Result] = Future()
        self._jobs.put((function, future))
        return future

    def _work(self) -> None:
        while True:
            function, future = self._jobs.get()
            try:
                future.set_result(function())
            except BaseException as error:
                # The border of a thread: whoever waits for the result gets it.
                future.set_exception(error)
            del function, future  # a model that is let go must not stay here until the next call
