"""Threads that decode where there are no processes, and that run work other than pictures."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from service.shared.writing import Ended, Work


class Threads:
    """A few threads and a queue. `ThreadPoolExecutor` adds futures, their locks and a count of idle threads, which
    cost several times the hand-over itself and are not needed here.

    A job wakes exactly one idle thread, the one that slept last. In a queue of the standard library all idle threads
    share one lock: each that wakes there wakes the next one, which finds nothing.
    """

    def __init__(self, threads: int) -> None:
        self._jobs: deque[Callable[[], object] | None] = deque()
        self._idle: deque[threading.Lock] = deque()
        """The lock that each idle thread waits for. All operations on both deques are atomic."""
        self._threads = [
            threading.Thread(target=self._work, name=f"decode-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def __repr__(self) -> str:
        return f"<Threads {len(self._threads)}, {len(self._jobs)} waiting>"

    stuck = False
    """Always False: a thread cannot be killed, so reporting it would not help."""

    def begin(self, work: Work, pixels: NDArray[np.uint8], ended: Ended) -> ThreadWriting:
        """Runs ``work(pixels)`` in one of the threads."""
        writing = ThreadWriting(asyncio.get_running_loop(), work, pixels, ended)
        self._put(writing)
        return writing

    def submit(self, job: Callable[[], object], /) -> None:
        """Runs ``job``, which must not raise, in one of the threads."""
        self._put(job)

    async def close(self) -> None:
        """Ends the threads after the submitted jobs and waits for them."""
        await asyncio.to_thread(self.shutdown)

    def shutdown(self) -> None:
        """Does what `close` does, for callers without an event loop. Blocks."""
        for _ in self._threads:
            self._put(None)
        for thread in self._threads:
            thread.join()

    def _put(self, job: Callable[[], object] | None) -> None:
        self._jobs.append(job)
        try:
            self._idle.pop().release()
        except IndexError:
            return  # all are busy; the first that finishes looks for more

    def _work(self) -> None:
        wake = threading.Lock()
        wake.acquire()
        while (job := self._next(wake)) is not None:
            job()

    def _next(self, wake: threading.Lock) -> Callable[[], object] | None:
        while True:
            try:
                return self._jobs.popleft()
            except IndexError:
                self._sleep(wake)

    def _sleep(self, wake: threading.Lock) -> None:
        """Sleeps until there may be a job. `_put` adds a job before it wakes a thread, so either the job is seen here
        after this thread is listed as idle, or `_put` sees this thread."""
        self._idle.append(wake)
        if self._jobs:
            try:
                self._idle.remove(wake)
            except ValueError:
                pass  # `_put` took this thread for idle: the lock is released, or about to be
            else:
                return
        wake.acquire()


class ThreadWriting:
    """A thread's write into a slot. Called in the thread.

    Whoever takes the one claim decides whether it runs: the thread that begins it, or the loop that
    gives it up before. Everything else happens on the loop.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, write: Work, pixels: NDArray[np.uint8], ended: Ended
    ) -> None:
        self.done: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._write = write
        self._pixels = pixels
        self._tell = ended
        self._claim = [True]  # pop is atomic
        self._seconds = 0.0
        self._ended = False
        self._error: BaseException | None = None
        self._on_abandoned: Callable[[], None] = lambda: None

    def __call__(self) -> None:
        if not self._claimed():
            return
        began = time.perf_counter()
        try:
            self._write(self._pixels)
        except BaseException as error:
            # The border of a thread: it is raised again where the write is awaited.
            self._error = error
        self._seconds = time.perf_counter() - began
        self._loop.call_soon_threadsafe(self._end)

    def abandon(self, callback: Callable[[], None]) -> None:
        """Calls ``callback`` when no thread writes any more: now if none has begun or it has ended."""
        if self._ended:
            callback()
        elif self._claimed():
            self._tell(None)
            callback()
        else:
            self._on_abandoned = callback

    def _claimed(self) -> bool:
        try:
            return self._claim.pop()
        except IndexError:
            return False

    def _end(self) -> None:
        self._ended = True
        self._tell(self._seconds)
        if not self.done.done():
            if self._error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(self._error)
        self._on_abandoned()
