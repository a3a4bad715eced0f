"""The memory for large pictures: a budget that all front-ends share, and the pictures that wait for a part of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from service import errors
from service.images.decoders.job import Job

#: Most pictures that wait for memory; more are refused at once.
_MAX_WAITING = 16
#: Seconds of Retry-After for a picture that found no memory.
_RETRY = 2.0


class MemoryBudget(Protocol):
    """The memory budget in bytes that the decoders of all front-ends share."""

    @property
    def memory_limit(self) -> float: ...
    def acquire(self, size: int) -> bool: ...
    def release(self, size: int) -> None: ...


class LargePictures:
    """The jobs that wait for memory, in order of arrival, and the memory that jobs have."""

    def __init__(self, budget: MemoryBudget, on_returned: Callable[[], None]) -> None:
        """``on_returned`` is called when a job has given memory back."""
        self.waiting: deque[Job] = deque()
        self._budget = budget
        self._on_returned = on_returned

    def __bool__(self) -> bool:
        return bool(self.waiting)

    def acquire(self, job: Job) -> bool:
        """Gives ``job`` the memory that it needs. Returns False if there is too little now."""
        if not self._budget.acquire(job.memory):
            return False
        job.reserved = job.memory
        return True

    def release(self, job: Job) -> None:
        """Takes back the memory that ``job`` has, if any."""
        if job.reserved:
            self._budget.release(job.reserved)
            job.reserved = 0
            self._on_returned()

    def remove(self, job: Job) -> None:
        """Removes ``job``, for which nobody waits any more, and takes back its memory."""
        if job in self.waiting:
            self.waiting.remove(job)
        self.release(job)

    def add(self, job: Job) -> None:
        """Queues ``job``, which needs more memory than it was allowed, or ends it with an error."""
        self.release(job)
        limit = self._budget.memory_limit
        if job.memory > limit:
            job.end(
                errors.ImageTooLarge(
                    f"decoding the image takes {job.memory >> 20} MiB, and there are {int(limit) >> 20} MiB "
                    "for pictures (the container's memory limit)"
                )
            )
        elif len(self.waiting) >= _MAX_WAITING:
            reason = "too many large images wait for memory"
            job.end(errors.Overloaded(f"{reason}; try again in about {_RETRY:.0f} s", retry_after=_RETRY))
        else:
            self.waiting.append(job)
