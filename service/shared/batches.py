"""The interface between the engine and the models for a batch that runs. It holds no tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable


class DeviceFailed(Exception):
    """The device must get no more work. The message says why, for people."""

    def __init__(self, message: str, *, mismatches: int = 0) -> None:
        super().__init__(message)
        self.mismatches = mismatches
        """The number of wrong canary answers, if they are the reason."""


class Memory(NamedTuple):
    """The device's own memory in bytes, all processes together."""

    used: int = 0
    total: int = 0
    """0 for a device without memory of its own."""


@dataclass(frozen=True)
class BatchReport:
    """The facts about a finished batch beside its answers."""

    rows: int
    """The images that the device computed, padding included."""
    mismatches: int = 0
    """The number of canary answers that differ from those at warm-up."""
    distrust: str = ""
    """The reason why the device should get no more work, although these answers are good; usually empty."""
    canaries: int = 0
    """The number of canary answers that were compared."""
    canary_due: bool = False
    """True if so many batches have run since the last canary that the next one should be a canary."""
    rest: Callable[[], None] | None = None
    """The work that completes the answers without the device, for any thread; None if they are complete."""


class BatchHandle(Protocol):
    """A batch on the device."""

    def done(self) -> bool:
        """True if `finish` would not wait: the batch has ended or failed. Never blocks, never raises."""

    def finish(self) -> BatchReport:
        """Waits, and writes what the tasks want, but for `BatchReport.rest`.

        Raises what the model raised, `DeviceFailed` for the device.
        """


@runtime_checkable
class Remeasurable(Protocol):
    """A runner that wants to repeat its measurements while the device is idle."""

    def measure_again(self) -> Iterator[None]:
        """Yields after each step; a step takes no longer than a batch."""


class CompletedBatch:
    """A batch that was complete when `start` returned, on a device that computes synchronously."""

    def __init__(self, ran: BatchReport) -> None:
        self._ran = ran

    def done(self) -> bool:
        return True

    def finish(self) -> BatchReport:
        return self._ran
