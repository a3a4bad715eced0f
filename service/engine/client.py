"""The front-end's door to the engines of one model. Lives on one event loop; never imports torch.

client ──choice──▶ connection ──▶ engine        one for each engine; `service.engine.connection` has a slot's life
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Hashable

import numpy as np

from service.engine.arena import Arena, Gauge
from service.engine.choice import in_order
from service.engine.connection import Connection
from service.engine.decode_memory import DecodeMemory
from service.engine.slot import Answer, Slot
from service.errors import DeadlineExceeded, EngineFailed, NotReady, Overloaded
from service.shared.transport import Link

#: Seconds between two looks for a slot that another front-end may have released.
_LOOK_AGAIN = 0.005
#: Retry-After in seconds, at least and at most, and how far it is spread so that clients do not return together.
_SHORTEST_RETRY, _LONGEST_RETRY, _SPREAD = 1.0, 60.0, 0.25


class EngineClient:
    """Slots of the engines that are there now. Construct, `attach` each; an engine that fails leaves by itself."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        threads: int = 0,
        memory: DecodeMemory | None = None,
    ) -> None:
        """``threads`` decode, in processes or threads; 0 where nobody counts them. ``memory`` is theirs."""
        self.clock = clock
        self.memory = memory or DecodeMemory()
        self._threads = threads
        self._connections: list[Connection] = []
        self._turn = 0
        """Images that wanted a slot: engines that are equally good take turns."""
        self._cancelled: Callable[[], None] = lambda: None
        self._again: Callable[[], None] = lambda: None
        self._waiting: set[asyncio.Future[None]] = set()
        """Of those whose engine has failed: they look again when anything has changed."""
        self._last = False
        """Whether no other engine is going to come."""

    def __repr__(self) -> str:
        return f"<EngineClient {[one.arena for one in self._connected] or 'not connected'}>"

    def on_cancelled(self, callback: Callable[[], None]) -> None:
        """``callback`` is called for every image whose client went away before the model ran."""
        self._cancelled = callback

    def on_resubmitted(self, callback: Callable[[], None]) -> None:
        """``callback`` is called for every image that is submitted once more since its engine died."""
        self._again = callback

    def attach(
        self, arena: Arena, link: Link, number: int, standby: bool = False, model: Hashable = None
    ) -> Connection:
        """Serves from ``arena``, too, from now on, as front-end ``number``. To be called on the event loop.

        ``model`` is what the engine computes: images go from one that has died to one of the same.
        """
        connection = Connection(arena, link, number, self._cancelled, self._threads, standby, model)
        self._connections = [*self._connected, connection]
        self._last = False
        connection.listen()
        self.memory.join(connection)
        self._wake()
        return connection

    def expect_no_other(self) -> None:
        """Nobody waits for another engine any more: the service ends."""
        self._last = True
        self._wake()

    def detach(self) -> None:
        """Lets go of every engine; whoever waits for one gets `EngineFailed`."""
        for connection in self._connections:
            connection.leave_engine()
        self._connections = []
        self.expect_no_other()

    @property
    def asked(self) -> list[Connection]:
        """Those that new images go to: the standby where there is no other."""
        living = self._connected
        return [connection for connection in living if not connection.standby] or living

    @property
    def connections(self) -> list[Connection]:
        """Those whose engines have not closed their ends."""
        return self._connected

    @property
    def _connected(self) -> list[Connection]:
        return [connection for connection in self._connections if not connection.failed]

    @property
    def connected(self) -> bool:
        """Whether there is an engine that has not closed its end."""
        return any(not connection.failed for connection in self._connections)

    @property
    def pending(self) -> int:
        """Slots that this front-end has with engines."""
        return sum(len(connection.submitted) for connection in self._connections)

    def record_arrivals(self, images: int = 1) -> None:
        """Counts ``images`` as arrived, admitted or not: what an autoscaler follows. Bulk ones are not to be counted:
        they take what is left, however much that is."""
        connection = self._in_order(False)[0]
        connection.arena.arrivals[connection.number] += np.uint64(images)

    def check_capacity(self, deadline: float = math.inf, bulk: bool = False) -> None:
        """Raises what `acquire` would, without taking: before a body is read that nobody could serve."""
        connections = self._ready()
        if not any(connection.arena.free > connection.reserve(bulk) for connection in connections):
            raise self._overloaded(connections)
        self._check_deadline_feasible(self._in_order(bulk)[0], deadline, bulk)

    def acquire(self, deadline: float = math.inf, bulk: bool = False) -> Slot:
        """A slot, to be used in a ``with`` statement. ``bulk`` waits for everybody else.

        Raises `Overloaded` when none is free or the answer would come after the ``deadline`` (seconds of the
        client's clock), `NotReady` or `EngineFailed` when there is no engine.
        """
        self._turn += 1
        connections = self._in_order(bulk)
        self._check_deadline_feasible(connections[0], deadline, bulk)
        for connection in connections:
            number = _acquire_from(connection, deadline, bulk)
            if number is not None:
                return Slot(connection, number, self.clock, self)
        raise self._overloaded(connections)

    async def admit(self, deadline: float, bulk: bool = False) -> Slot:
        """`acquire`, for a request that `check_capacity` has let in: an engine that has died since is waited for."""
        while True:
            try:
                return self.acquire(deadline, bulk)
            except EngineFailed:
                await self._another(deadline)

    async def acquire_in_turn(self, deadline: float, bulk: bool = False) -> Slot:
        """A slot, waiting for one until ``deadline``: for the second and later images of one request."""
        while True:
            try:
                slot = self.acquire(bulk=bulk)
                slot.record_admission(deadline, bulk)
                return slot
            except Overloaded:
                if self.clock() >= deadline:
                    raise DeadlineExceeded(
                        "the deadline passed before there was room for every image"
                    ) from None
                await asyncio.sleep(_LOOK_AGAIN)
            except EngineFailed:
                await self._another(deadline)

    async def acquire_elsewhere(
        self, failed: Connection, deadline: float, bulk: bool
    ) -> tuple[Connection, int]:
        """See `service.engine.slot.Others`."""
        while True:
            if not self.connected:
                await self._another(deadline)
                continue
            connections = [one for one in self._in_order(bulk) if one.model == failed.model]
            if not connections:
                raise EngineFailed("the engine failed, and the one after it has another model")
            for connection in connections:
                number = _acquire_from(connection, deadline, bulk)
                if number is not None:
                    return connection, number
            await self._wait_for_slots(self._patience(deadline), _LOOK_AGAIN)

    def record_resubmission(self) -> None:
        """See `service.engine.slot.Others`."""
        self._again()

    async def _another(self, deadline: float) -> None:
        """Waits until there may be an engine. Raises `DeadlineExceeded`, and `EngineFailed` where none will come."""
        if self._last:
            raise EngineFailed("the engine failed while it held this request")
        await self._wait_for_slots(self._patience(deadline))

    def _patience(self, deadline: float) -> float:
        patience = deadline - self.clock()
        if patience <= 0:
            raise DeadlineExceeded("the deadline passed before another engine was there (request_timeout_ms)")
        return patience

    async def _wait_for_slots(self, *seconds: float) -> None:
        """Returns when an engine has come, when none will, or after the least of ``seconds``."""
        loop = asyncio.get_running_loop()
        news: asyncio.Future[None] = loop.create_future()
        self._waiting.add(news)
        timer = loop.call_later(min(seconds), _settle, news)
        try:
            await news
        finally:
            timer.cancel()
            self._waiting.discard(news)

    def _wake(self) -> None:
        for news in self._waiting:
            _settle(news)

    def _ready(self) -> list[Connection]:
        """Engines that may be asked: the standby where there is no other. Never empty."""
        connections = self._connections
        if len(connections) == 1 and not connections[0].failed:  # as a rule, and asked thrice for each image
            return connections
        if asked := self.asked:
            return asked
        if connections:
            raise EngineFailed("the engine has failed and is being started again")
        raise NotReady("the model is not loaded yet")

    def _in_order(self, bulk: bool) -> list[Connection]:
        """Who may take the next image, the best first; all of them where none has room. Never empty."""
        connections = self._ready()
        if len(connections) == 1:
            return connections
        now = self.clock()
        order = in_order([connection.offer(bulk, now) for connection in connections], self._turn)
        return [connections[place] for place in order] or connections

    def _check_deadline_feasible(self, connection: Connection, deadline: float, bulk: bool) -> None:
        """Raises `Overloaded` for a ``deadline`` that cannot be met. One that has passed is no matter of load."""
        now = self.clock()
        patience = deadline - now
        arena = connection.arena
        taken = arena.geometry.slots - arena.free
        # Only who could be too late behind everybody needs to know exactly who is ahead.
        if patience <= 0 or connection.wait(taken, now) <= patience:
            return
        ahead = taken if bulk else arena.due_by(deadline)
        wait = connection.wait(ahead, now)
        if wait > patience:
            reason = f"an answer would take {wait:.2g} s and there are {patience:.2g} s (request_timeout_ms)"
            raise _overload(reason, wait - patience)

    def _overloaded(self, connections: list[Connection]) -> Overloaded:
        slots = sum(connection.arena.geometry.slots for connection in connections)
        capacity = sum(float(connection.arena.gauges[Gauge.CAPACITY]) for connection in connections)
        reason = f"all {slots} places are taken (queue_capacity)"
        return _overload(reason, slots / capacity if capacity > 0 else _SHORTEST_RETRY)


def _acquire_from(connection: Connection, deadline: float, bulk: bool) -> int | None:
    """A place with that engine; None where there is no room."""
    arena = connection.arena
    room = not bulk or arena.free > connection.reserve(bulk)
    number = arena.acquire(connection.number) if room else None
    if number is not None:
        arena.record_admission(number, deadline, bulk)
    return number


def _settle(news: asyncio.Future[None]) -> None:
    if not news.done():
        news.set_result(None)


def _overload(reason: str, wait: float) -> Overloaded:
    wait = min(max(wait, _SHORTEST_RETRY), _LONGEST_RETRY) * (1 + _SPREAD * random.random())
    return Overloaded(f"{reason}; try again in about {wait:.0f} s", retry_after=wait)


__all__ = ["Answer", "EngineClient", "Slot"]
