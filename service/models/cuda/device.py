"""The device as the pipeline needs it, so that its order of work can be proved without a GPU.

A stream runs its work in order, and later than it is enqueued. Streams run independently unless one waits for an
event of another. Memory that work reads or writes must stay untouched until an event after that work was waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from service.models.runtimes import Pixels
from service.shared.batches import Memory

Work = Callable[[], None]


class Event(Protocol):
    """A mark in a stream."""

    def done(self) -> bool:
        """Returns True if all work before it is done or has failed. Never blocks, never raises."""

    def wait(self) -> None:
        """Blocks until then. Raises `RuntimeError` if anything has failed on the device."""


class Stream(Protocol):
    """A queue of work on the device."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Enqueues a copy, also between memories; both tensors are contiguous and of one dtype."""

    def copy_all(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Enqueues a copy for each pair of target and source, at less cost for the host than one by one."""

    def run(self, work: Work) -> None:
        """Enqueues work: from `Device.capture`, or a function of torch operations."""

    def wait(self, event: Event) -> None:
        """Delays all later work until ``event``."""

    def record(self) -> Event:
        """Returns an event after all work so far."""


class Device(Protocol):
    """One accelerator. Allocated memory is uninitialised."""

    def stream(self) -> Stream: ...

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocates device memory. Raises errors that `out_of_memory` recognises."""

    def staging(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocates host memory with which a stream can copy while the host goes on (pinned memory)."""

    def adopt(self, pixels: Pixels) -> Tensor | str:
        """Pins the memory of these pixels for the array's lifetime. Returns a tensor over it, or the reason of a
        refusal."""

    def capture(self, work: Work, stream: Any) -> Work:
        """Records what ``work`` does on ``stream``, to be replayed at once. ``work`` must have run on that stream
        before."""

    def memory(self) -> Memory:
        """Returns the memory of the whole device. Raises `RuntimeError` if it does not answer."""

    def release(self) -> None:
        """Returns cached, unused memory to the device."""

    def out_of_memory(self, error: Exception) -> bool:
        """Returns True if ``error`` means that less memory would have sufficed."""

    def failure(self, error: Exception) -> str:
        """Returns what is wrong with the device itself, in words; empty if it still works after ``error``."""
