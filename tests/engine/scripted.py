"""An engine's end of the arena and the link, which answers when told to, and a client of some on a virtual clock."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from service.engine.arena import Arena, Gauge, Geometry, Outcome
from service.engine.client import EngineClient
from service.shared.transport import Link, socket_pair
from tests.engine.virtual import VirtualLoop
from tests.fakes import VirtualClock, fingerprint

T = TypeVar("T")

#: The front-end's number in every engine.
NUMBER = 1
RESULTS = 10


class ScriptedEngine:
    """``mapped`` and ``descriptor`` are the front-end's mapping and socket."""

    def __init__(self, slots: int) -> None:
        self.arena = Arena.create(Geometry(slots, 2, 2, 3, RESULTS))
        self.mapped = Arena(os.dup(self.arena.descriptor), self.arena.geometry)
        ours, theirs = socket_pair()
        self.descriptor = ours.fileno()
        self.theirs = Link(ours)
        self.link = Link(theirs)

    def received(self) -> list[int]:
        """What the front-end has sent since."""
        return list(self.link.receive() or [])

    def answer(self, slot: int, outcome: Outcome = Outcome.OK, started: float = 0.0) -> None:
        """Lets the image in ``slot`` have run in half a second, in the batch 7 of 3."""
        self.arena.results[slot] = fingerprint(self.arena.pixels[slot], RESULTS)
        self.arena.record_finish(slot, started, started + 0.5, 7, 3, outcome)
        self.link.send([slot])

    def measured(self, seconds: float, capacity: float, size: int = 1) -> None:
        """Publishes the pace of a device."""
        self.arena.gauges[[Gauge.PASS, Gauge.CAPACITY, Gauge.MAX_BATCH_SIZE]] = seconds, capacity, size

    def close(self) -> None:
        self.link.close()
        self.arena.close()


class Timed(VirtualLoop):
    """Knows its timers."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock)
        self._made: weakref.WeakSet[asyncio.TimerHandle] = weakref.WeakSet()
        self.futures: weakref.WeakSet[asyncio.Future[Any]] = weakref.WeakSet()
        """Those that somebody still holds."""

    def call_at(self, *arguments: Any, **keywords: Any) -> asyncio.TimerHandle:  # type: ignore[override]
        handle = super().call_at(*arguments, **keywords)
        self._made.add(handle)
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        future = super().create_future()
        self.futures.add(future)
        return future

    @property
    def timers(self) -> int:
        """How many are set."""
        return sum(not handle.cancelled() and handle.when() > self.time() for handle in self._made)


class Desk:
    """A client of scripted engines, on a loop that turns and a clock that moves when told to."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.loop = Timed(self.clock)
        self.client = EngineClient(self.clock, threads=1)
        self.engines: list[ScriptedEngine] = []
        self.again = 0
        self.hang_ups = 0
        self.client.on_resubmitted(self._resubmitted)
        self.client.on_cancelled(self._hung_up)

    def _resubmitted(self) -> None:
        self.again += 1

    def _hung_up(self) -> None:
        self.hang_ups += 1

    def attach(self, slots: int = 2, **options: Any) -> ScriptedEngine:
        """Adds an engine; ``options`` go to `EngineClient.attach`."""
        engine = ScriptedEngine(slots)

        async def join() -> None:
            self.client.attach(engine.mapped, engine.theirs, NUMBER, **options)

        self.loop.run_until_complete(join())
        self.engines.append(engine)
        return engine

    def kill(self, engine: ScriptedEngine) -> None:
        """Ends ``engine`` as its process's death does."""
        engine.link.close()
        self.loop.turn()

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Lets ``work`` go as far as it can."""
        task = self.loop.create_task(work)
        self.loop.turn()
        return task

    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.loop.turn()


@contextmanager
def desk() -> Iterator[Desk]:
    made = Desk()
    try:
        yield made
    finally:
        made.client.detach()
        made.loop.turn()
        made.loop.close()
        for engine in made.engines:
            engine.close()
