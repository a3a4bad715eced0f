"""What a model tells about a batch that it runs, in words that the engine and the models share: no tensor in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable


class DeviceFailed(Exception):
    """The device is not to be given any more work. The message says what was seen, for people."""

    def __init__(self, message: str, *, mismatches: int = 0) -> None:
        super().__init__(message)
        self.mismatches = mismatches
        """How often the canary's answer was wrong, if that is the reason."""


class Memory(NamedTuple):
    """Bytes of the device's own memory, by everyone on it."""

    used: int = 0
    total: int = 0
    """0 for a device that has none of its own."""


@dataclass(frozen=True)
class BatchReport:
    """What there is to tell about a batch beside its answers."""

    rows: int
    """Images that the device computed, padding included."""
    mismatches: int = 0
    """How often the canary's answer was not what it was at warm-up."""
    distrust: str = ""
    """Why the device should get no more work, though these answers are good; empty as a rule."""
    canaries: int = 0
    """Answers to the canary that were looked at."""
    canary_due: bool = False
    """Whether so much has run since the canary was last looked at that it is the next that should run."""
    rest: Callable[[], None] | None = None
    """What is left to do for the answers without the device; until it is done they are not whole. Any thread may."""


class BatchHandle(Protocol):
    """A batch on the device."""

    def done(self) -> bool:
        """Whether `finish` would not have to wait, also because the batch has failed. Never blocks, never raises."""

    def finish(self) -> BatchReport:
        """Waits, and writes what the tasks want, but for `BatchReport.rest`.

        Raises what the model raised, `DeviceFailed` for the device.
        """


@runtime_checkable
class Remeasurable(Protocol):
    """A runner that has something to do when nobody asks it anything."""

    def measure_again(self) -> Iterator[None]:
        """Each step takes no longer than a batch."""


class CompletedBatch:
    """A batch of a device that computes while `start` waits for it."""

    def __init__(self, ran: BatchReport) -> None:
        self._ran = ran

    def done(self) -> bool:
        return True

    def finish(self) -> BatchReport:
        return self._ran
