"""One thread that runs functions one after the other, for state that belongs to a thread, such as CUDA's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

Result = TypeVar("Result")


class Owner:
    """The thread ``name``. It starts with the first call, and is a daemon that does not keep the process alive."""

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        self._thread = threading.Thread(target=self._run_jobs, name=name, daemon=True)

    def call(self, function: Callable[[], Result]) -> Result:
        """Runs ``function`` in the thread, and returns or raises what it does."""
        return self._submit(function).result()

    def start(self, function: Callable[[], None]) -> Callable[[], None]:
        """Begins to run ``function`` in the thread. Returns a function that waits for its end."""
        return self._submit(function).result

    def _submit(self, function: Callable[[], Result]) -> Future[Result]:
        if not self._thread.is_alive():
            self._thread.start()
        future: Future[Result] = Future()
        self._jobs.put((function, future))
        return future

    def _run_jobs(self) -> None:
        while True:
            function, future = self._jobs.get()
            try:
                future.set_result(function())
            except BaseException as error:
                # The border of a thread: the future passes the error to the caller.
                future.set_exception(error)
            del function, future  # else a model would stay in memory here until the next call
