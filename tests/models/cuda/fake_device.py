"""A device of ordinary memory that does its work as late as it may, in any order that its events allow.

What is not ordered by a stream or an event happens in a random order, and only when somebody waits; so a buffer that
is written too early, read too late, or shared by two batches gives a wrong answer here. CUDA's own rules are in
`tests.models.cuda.rules`, and hold whatever the order was.
"""

from __future__ import annotations

import random
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from service.models.cuda.device import Event, Work
from service.models.runtimes import Pixels
from service.shared.batches import Memory
from tests.models.cuda.rules import Clock, RuleBroken, Rules, Watch, join


class FakeOutOfMemoryError(RuntimeError):
    pass


class LostError(RuntimeError):
    """As a sticky CUDA error: it comes back from every call."""


@dataclass(eq=False)
class FakeEvent:
    device: FakeDevice
    clock: Clock
    passed: bool = False

    def done(self) -> bool:
        self.device.rules.enter("asking an event", forbidden_in_capture=True)
        self.device.work_a_little()
        if self.passed:
            join(self.device.host, self.clock)
        return self.passed or bool(self.device.lost)

    def wait(self) -> None:
        self.device.rules.enter("waiting for an event", forbidden_in_capture=True)
        while not self.passed:
            self.device.refuse_when_lost()
            assert self.device.work_a_little(), "a deadlock: nobody can pass this event"
        join(self.device.host, self.clock)


@dataclass(eq=False)
class FakeStream:
    device: FakeDevice
    number: int
    clock: Clock = field(default_factory=dict)
    queue: deque[Work | FakeEvent | tuple[FakeEvent]] = field(default_factory=deque)
    """Work, an event to be marked, or in a tuple one to be waited for."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        assert target.shape == source.shape
        assert target.dtype == source.dtype
        assert target.is_contiguous()
        assert source.is_contiguous()
        device = self.device
        device.rules.enter("a copy")
        device.refuse_when_lost()
        device.rules.check_copy(target, source)
        clock, was = self._tick(), source.clone()
        if device.is_host(target):
            _poison(target)  # whoever reads it too early shall notice
        pinned = device.is_host(source)
        # Pageable memory is copied away at once.
        real = source if device.rules.knows(source) else was

        def copy() -> None:
            if pinned and not torch.equal(real, was):
                raise RuleBroken("pinned memory was written before the copy from it was done")
            device.rules.touch([real], False, self.number, clock, f"a copy on stream {self.number}")
            device.rules.touch([target], True, self.number, clock, f"a copy on stream {self.number}")
            target.copy_(real)

        self.queue.append(copy)

    def copy_all(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        for target, source in pairs:
            self.copy(target, source)

    def run(self, work: Work) -> None:
        device = self.device
        device.rules.enter("work")
        device.refuse_when_lost()
        device.allocate(work)
        self.queue.append(partial(device.watched, work, self.number, self._tick()))

    def wait(self, event: Event) -> None:
        assert isinstance(event, FakeEvent)
        self.device.rules.enter("a stream's waiting", forbidden_in_capture=True)
        join(self.clock, event.clock)
        self.queue.append((event,))

    def record(self) -> FakeEvent:
        self.device.rules.enter("an event", forbidden_in_capture=True)
        self.device.refuse_when_lost()
        event = FakeEvent(self.device, dict(self._tick()))
        self.queue.append(event)
        return event

    def _tick(self) -> Clock:
        join(self.clock, self.device.host)
        self.clock[self.number] = self.clock.get(self.number, 0) + 1
        return dict(self.clock)

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
    rules: Rules = field(default_factory=Rules)
    host: Clock = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self._graphs: list[Work] = []
        self._host_memory: list[Tensor] = []

    def stream(self) -> FakeStream:
        self.streams.append(FakeStream(self, len(self.streams)))
        return self.streams[-1]

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        self.rules.enter("allocating", forbidden_in_capture=True)
        if len(shape) == 4 and shape[0] > self.room * 4:
            raise FakeOutOfMemoryError
        # Whoever reads what nobody wrote shall notice.
        tensor = torch.full(tuple(shape), 171 if dtype is torch.uint8 else float("nan"), dtype=dtype)
        self.rules.know(tensor)
        return tensor

    def staging(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        tensor = self.empty(shape, dtype)
        self._host_memory.append(tensor)
        return tensor

    def is_host(self, tensor: Tensor) -> bool:
        """Whether it lies in pinned memory."""
        return any(
            host.data_ptr() <= tensor.data_ptr() < host.data_ptr() + host.nbytes for host in self._host_memory
        )

    def adopt(self, pixels: Pixels) -> Tensor | str:
        self.rules.enter("registering memory", forbidden_in_capture=True)
        self.adopted.append(pixels)
        if not self.adopts:
            return "this device registers nothing"
        tensor = torch.from_numpy(pixels)
        self.rules.know(tensor)
        self._host_memory.append(tensor)
        return tensor

    def capture(self, work: Work, stream: Any) -> Work:
        self.rules.enter("a capture", forbidden_in_capture=True)
        self.refuse_when_lost()
        assert isinstance(stream, FakeStream)
        assert not any(stream.queue for stream in self.streams), "captured while work was under way"
        self.captured += 1
        with self.rules.capture(), torch.inference_mode():
            work()
        self._graphs.append(work)
        return work

    def watched(self, work: Work, stream: int, clock: Clock) -> None:
        """Does ``work``, with an eye on what it touches."""
        graph = any(work is other for other in self._graphs)
        what = f"work on stream {stream}"

        def see(name: str, given: list[Tensor], made: list[Tensor]) -> None:
            self.rules.touch(given, False, stream, clock, what)
            self.rules.touch([tensor for tensor in made if name.endswith("_")], True, stream, clock, what)
            if graph:
                own = [tensor for tensor in made if not self.rules.knows(tensor)]
                self.rules.graphs_own = [ref for ref in self.rules.graphs_own if ref() is not None]
                self.rules.graphs_own += map(weakref.ref, own)

        with Watch(see):
            work()

    def memory(self) -> Memory:
        self.rules.enter("asking for the memory", forbidden_in_capture=True)
        self.refuse_when_lost()
        return Memory(1, 2)

    def release(self) -> None:
        self.rules.enter("releasing memory", forbidden_in_capture=True)
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


def _poison(tensor: Tensor) -> None:
    tensor.fill_(171 if tensor.dtype is torch.uint8 else float("nan"))
