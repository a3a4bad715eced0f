"""CUDA's rules, for a device that is not there: what a real one forbids, or allows and then computes nonsense.

    order     work on one stream sees what another has done only over an event, and so does the host
    pinned    memory of the host belongs to a copy until an event after it was waited for
    capture   while a graph is recorded, nobody waits, asks an event, allocates by the way or copies pageable memory
    pool      what a graph allocates is the pool's: the next graph writes over it
    thread    cuDNN's tuning, the current device and captures belong to a thread: one does everything

Whoever breaks one gets `RuleBroken`, which passes every border for exceptions on its way to the test.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: Operations that wait for the device to know a number.
_SYNCHRONISING = {"item", "_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique"}


class RuleBroken(BaseException):
    """Named like `KeyboardInterrupt`, and as hard to swallow."""


Clock = dict[int, int]
"""By stream: how many of its pieces of work are known to be done before."""


def join(clock: Clock, other: Clock) -> None:
    for stream, count in other.items():
        clock[stream] = max(clock.get(stream, 0), count)


@dataclass(frozen=True)
class Touch:
    """One piece of work's access to bytes."""

    first: int
    last: int
    writes: bool
    stream: int
    clock: Clock
    what: str

    def conflicts(self, other: Touch) -> bool:
        overlap = self.first <= other.last and other.first <= self.last
        return overlap and (self.writes or other.writes) and not self.before(other) and not other.before(self)

    def before(self, other: Touch) -> bool:
        return other.clock.get(self.stream, 0) >= self.clock[self.stream]


def span(tensor: Tensor) -> tuple[int, int]:
    """The first and last byte that a tensor reaches."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size() - 1


@dataclass
class Rules:
    """What is known of one device: who may, and what happened."""

    owner: int | None = None
    capturing: bool = False
    known: dict[int, tuple[int, Any]] = field(default_factory=dict)
    """By address: the end, and the owner, of memory that the device knows: its own and the host's pinned."""
    touches: list[Touch] = field(default_factory=list)
    graphs_own: list[weakref.ref[Tensor]] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)

    def enter(self, what: str, *, forbidden_in_capture: bool = False) -> None:
        """Something of the device's is used."""
        me = threading.get_ident()
        self.owner = self.owner or me
        if self.owner != me:
            raise RuleBroken(f"{what} in another thread: what was tuned or captured there is not known here")
        if forbidden_in_capture and self.capturing:
            raise RuleBroken(f"{what} while a graph is captured")

    def know(self, tensor: Tensor) -> None:
        first, last = span(tensor)
        self.known[first] = (last, tensor)

    def knows(self, tensor: Tensor) -> bool:
        first, last = span(tensor)
        return any(start <= first and last <= end for start, (end, _) in self.known.items())

    def check_copy(self, target: Tensor, source: Tensor) -> None:
        for tensor in (target, source):
            if self.capturing and not self.knows(tensor):
                raise RuleBroken("a copy of pageable memory while a graph is captured")
            if any(
                (own := reference()) is not None and own.data_ptr() == tensor.data_ptr()
                for reference in self.graphs_own
            ):
                raise RuleBroken(
                    "what a graph has allocated is copied outside of it: the next graph writes over it"
                )

    def touch(self, tensors: list[Tensor], writes: bool, stream: int, clock: Clock, what: str) -> None:
        for tensor in tensors:
            if not tensor.numel() or not self.knows(tensor):
                continue
            new = Touch(*span(tensor), writes, stream, clock, what)
            for old in self.touches:
                if new.conflicts(old):
                    raise RuleBroken(f"{what} and {old.what} touch the same memory, and no event orders them")
            # What lies before in order and within can be forgotten: whoever follows the new one follows it.
            self.touches = [
                old
                for old in self.touches
                if not (writes and new.first <= old.first and old.last <= new.last and old.before(new))
            ]
            self.touches.append(new)

    @contextmanager
    def capture(self) -> Iterator[None]:
        self.capturing = True
        try:
            with Watch(lambda name, given, made: self._in_capture(name)):
                yield
        finally:
            self.capturing = False

    def _in_capture(self, name: str) -> None:
        if name in _SYNCHRONISING:
            raise RuleBroken(f"{name} while a graph is captured: it waits for the device")


class Watch(TorchDispatchMode):
    """Tells of each operation: its name, the tensors that it was given, and those that it made or wrote."""

    def __init__(self, tell: Callable[[str, list[Tensor], list[Tensor]], None]) -> None:
        super().__init__()
        self._tell = tell

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self._tell(function.overloadpacket.__name__, given, made)
        return result
