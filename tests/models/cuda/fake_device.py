"""A device of ordinary memory that does its work as late as it may, in any order that its events allow.

What is not ordered by a stream or an event happens in a random order, and only when somebody waits; so a buffer that
is written too early, read too late, or shared by two batches gives a wrong answer here.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from service.models.cuda.device import Event, Work
from service.models.runtimes import Pixels
from service.running import Memory


def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source)


class FakeOutOfMemoryError(RuntimeError):
    pass


class LostError(RuntimeError):
    """As a sticky CUDA error: it comes back from every call."""


@dataclass(eq=False)
class FakeEvent:
    device: FakeDevice
    passed: bool = False

    def done(self) -> bool:
        self.device.work_a_little()
        return self.passed or bool(self.device.lost)

    def wait(self) -> None:
        while not self.passed:
            self.device.refuse_when_lost()
            assert self.device.work_a_little(), "a deadlock: nobody can pass this event"


@dataclass(eq=False)
class FakeStream:
    device: FakeDevice
    queue: deque[Work | FakeEvent | tuple[FakeEvent]] = field(default_factory=deque)
    """Work, an event to be marked, or in a tuple one to be waited for."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        assert target.shape == source.shape
        assert target.dtype == source.dtype
        assert target.is_contiguous()
        assert source.is_contiguous()
        self.device.refuse_when_lost()
        self.queue.append(partial(_copy, target, source))

    def run(self, work: Work) -> None:
        self.device.refuse_when_lost()
        self.device.allocate(work)
        self.queue.append(work)

    def wait(self, event: Event) -> None:
        assert isinstance(event, FakeEvent)
        self.queue.append((event,))

    def record(self) -> FakeEvent:
        self.device.refuse_when_lost()
        event = FakeEvent(self.device)
        self.queue.append(event)
        return event

    def able(self) -> bool:
        return bool(self.queue) and not (isinstance(self.queue[0], tuple) and not self.queue[0][0].passed)

    @torch.inference_mode()
    def step(self) -> None:
        item = self.queue.popleft()
        if isinstance(item, FakeEvent):
            item.passed = True
        elif not isinstance(item, tuple):
            item()


@dataclass(eq=False)
class FakeDevice:
    """``room`` is how many images a forward pass may have before memory runs out."""

    seed: int = 0
    room: int = 10_000
    adopts: bool = False
    lost: str = ""
    images_of: Callable[[Work], int] = lambda work: 0
    """What a piece of work wants of ``room``."""
    streams: list[FakeStream] = field(default_factory=list)
    captured: int = 0
    released: int = 0
    adopted: list[Pixels] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    def stream(self) -> FakeStream:
        self.streams.append(FakeStream(self))
        return self.streams[-1]

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        if len(shape) == 4 and shape[0] > self.room * 4:
            raise FakeOutOfMemoryError
        # Whoever reads what nobody wrote shall notice.
        return torch.full(tuple(shape), 171 if dtype is torch.uint8 else float("nan"), dtype=dtype)

    staging = empty

    def adopt(self, pixels: Pixels) -> Tensor | None:
        self.adopted.append(pixels)
        return torch.from_numpy(pixels) if self.adopts else None

    def capture(self, work: Work) -> Work:
        self.refuse_when_lost()
        assert not any(stream.queue for stream in self.streams), "captured while work was under way"
        self.captured += 1
        return work

    def memory(self) -> Memory:
        self.refuse_when_lost()
        return Memory(1, 2)

    def release(self) -> None:
        self.released += 1

    def out_of_memory(self, error: Exception) -> bool:
        return isinstance(error, FakeOutOfMemoryError)

    def failure(self, error: Exception) -> str:
        return self.lost

    def refuse_when_lost(self) -> None:
        if self.lost:
            raise LostError(self.lost)

    def allocate(self, work: Work) -> None:
        if self.images_of(work) > self.room:
            raise FakeOutOfMemoryError

    def work_a_little(self) -> bool:
        """One step of some stream that can make one; False when none can."""
        able = [stream for stream in self.streams if stream.able()]
        if able:
            self.chance.choice(able).step()
        return bool(able)
