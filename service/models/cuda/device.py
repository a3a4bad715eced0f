"""What the pipeline wants of a device, so that its order of work can be proved without one.

A stream does what it is given in order, later than it is asked to. Streams know nothing of each other unless one
waits for an event of another. Memory that work still reads or writes belongs to that work until an event after
it was waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from service.models.runtimes import Pixels
from service.shared.batches import Memory

Work = Callable[[], None]


class Event(Protocol):
    """A mark in a stream."""

    def done(self) -> bool:
        """Whether everything before it has been done, or has failed. Never blocks, never raises."""

    def wait(self) -> None:
        """Blocks until then. Raises `RuntimeError` for whatever has failed on the device."""


class Stream(Protocol):
    """Work in order."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copies, between memories too; both are contiguous and of one type."""

    def run(self, work: Work) -> None:
        """What `Device.capture` gave, or a function of torch's own operations."""

    def wait(self, event: Event) -> None:
        """Whatever comes after this is done after ``event``."""

    def record(self) -> Event:
        """A mark after everything so far."""


class Device(Protocol):
    """One accelerator. Memory comes uninitialised."""

    def stream(self) -> Stream: ...

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory of the device's. Raises what `out_of_memory` knows."""

    def staging(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory of the host that a stream can copy from and to while the host goes on."""

    def adopt(self, pixels: Pixels) -> Tensor | str:
        """Makes these pixels such memory, for as long as the array is there; or why that cannot be."""

    def capture(self, work: Work, stream: Any) -> Work:
        """Records what ``work`` would do on ``stream``, to be done again in one go. It has to have run there before."""

    def memory(self) -> Memory:
        """Of the whole device. Raises `RuntimeError` when it does not answer."""

    def release(self) -> None:
        """Gives memory back that is kept for later and not in use."""

    def out_of_memory(self, error: Exception) -> bool:
        """Whether ``error`` says that less would have worked."""

    def failure(self, error: Exception) -> str:
        """What is wrong with the device itself, in words; empty where it still works after ``error``."""
