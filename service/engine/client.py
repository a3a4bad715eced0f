"""The front-end's client of the engines of one model. Used on one event loop; never imports torch.

client ──choice──▶ connection ──▶ engine        one connection for each engine; it draws a slot's life
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
from service.engine.slot import Slot, SlotAnswer
from service.errors import DeadlineExceeded, EngineFailed, NotReady, Overloaded
from service.shared.transport import Link

#: Seconds between two attempts to acquire a slot, since another front-end may release one unnoticed.
_POLL = 0.005
#: The least and the largest Retry-After in seconds, and the share by which it is randomly longer, so that clients do
#: not return together.
_MIN_RETRY, _MAX_RETRY, _SPREAD = 1.0, 60.0, 0.25


class EngineClient:
    """Hands out slots of the attached engines. `attach` adds an engine; an engine that fails is dropped."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        threads: int = 0,
        memory: DecodeMemory | None = None,
    ) -> None:
        """``threads`` is the number of this front-end's decoders (0: unknown), ``memory`` the decoders' memory."""
        self.clock = clock
        self.memory = memory or DecodeMemory()
        self._threads = threads
        self._connections: list[Connection] = []
        self._turn = 0
        """The number of images so far; equally good engines take turns by it."""
        self._cancelled: Callable[[], None] = lambda: None
        self._again: Callable[[], None] = lambda: None
        self._waiting: set[asyncio.Future[None]] = set()
        """The futures of requests that wait for an engine; a change of the engines completes them."""
        self._last = False
        """True if no other engine will be attached."""

    def __repr__(self) -> str:
        return f"<EngineClient {[one.arena for one in self._connected] or 'not connected'}>"

    def on_cancelled(self, callback: Callable[[], None]) -> None:
        """Sets the function that is called for every image whose client disconnected before the model ran."""
        self._cancelled = callback

    def on_resubmitted(self, callback: Callable[[], None]) -> None:
        """Sets the function that is called for every image that is submitted again because its engine died."""
        self._again = callback

    def attach(
        self, arena: Arena, link: Link, number: int, standby: bool = False, model: Hashable = None
    ) -> Connection:
        """Adds an engine with its ``arena`` and ``link``, as front-end ``number``. Call it on the event loop.

        A ``standby`` gets images only while there is no other engine. Engines of equal ``model`` give equal answers, so
        an image of one that died may go to another.
        """
        connection = Connection(arena, link, number, self._cancelled, self._threads, standby, model)
        self._connections = [*self._connected, connection]
        self._last = False
        connection.listen()
        self.memory.join(connection)
        self._wake()
        return connection

    def expect_no_other(self) -> None:
        """Ends all waiting for another engine, since the service ends."""
        self._last = True
        self._wake()

    def detach(self) -> None:
        """Leaves all engines. Requests that wait for one get `EngineFailed`."""
        for connection in self._connections:
            connection.leave_engine()
        self._connections = []
        self.expect_no_other()

    @property
    def asked(self) -> list[Connection]:
        """The connections for new images: those without standby, or the standby if there is no other."""
        return _without_standby(self._connected)

    @property
    def connections(self) -> list[Connection]:
        """The connections whose engines live."""
        return self._connected

    @property
    def _connected(self) -> list[Connection]:
        return [connection for connection in self._connections if not connection.failed]

    @property
    def connected(self) -> bool:
        """True if an engine lives."""
        return any(not connection.failed for connection in self._connections)

    @property
    def pending(self) -> int:
        """The number of this front-end's slots that engines hold."""
        return sum(len(connection.submitted) for connection in self._connections)

    def record_arrivals(self, images: int = 1) -> None:
        """Counts ``images`` as arrived, admitted or not; an autoscaler follows the count.

        Bulk images are not counted, since they only use the capacity that is left.
        """
        connection = self._in_order(False)[0]
        connection.arena.arrivals[connection.number] += np.uint64(images)

    def check_capacity(self, deadline: float = math.inf, bulk: bool = False) -> None:
        """Raises what `acquire` would raise, without taking a slot, so that no body is read in vain."""
        connections = self._ready()
        if not any(connection.arena.free > connection.reserve(bulk) for connection in connections):
            raise self._overloaded(connections)
        self._check_deadline_feasible(self._in_order(bulk)[0], deadline, bulk)

    def acquire(self, deadline: float = math.inf, bulk: bool = False) -> Slot:
        """Takes a slot, to be used in a ``with`` statement. A ``bulk`` image runs after all others.

        Raises `Overloaded` if no slot is free or the answer would come after the ``deadline`` (seconds of the client's
        clock), `NotReady` or `EngineFailed` if there is no engine.
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
        """Takes a slot as `acquire` does, but waits for an engine's successor until ``deadline``.

        For requests that `check_capacity` has let in.
        """
        while True:
            try:
                return self.acquire(deadline, bulk)
            except EngineFailed:
                await self._another(deadline)

    async def acquire_in_turn(self, deadline: float, bulk: bool = False) -> Slot:
        """Takes a slot and waits for one until ``deadline``; for the second and later images of a request."""
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
                await asyncio.sleep(_POLL)
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
            alike = _without_standby([one for one in self._connected if one.model == failed.model])
            if not alike:
                raise EngineFailed("the engine failed, and the one after it has another model")
            for connection in self._in_order(bulk, alike):
                number = _acquire_from(connection, deadline, bulk)
                if number is not None:
                    return connection, number
            await self._wait_for_slots(self._patience(deadline), _POLL)

    def record_resubmission(self) -> None:
        """See `service.engine.slot.Others`."""
        self._again()

    async def _another(self, deadline: float) -> None:
        """Waits for a change of the engines. Raises `DeadlineExceeded`, or `EngineFailed` if no engine will come."""
        if self._last:
            raise EngineFailed("the engine failed while it held this request")
        await self._wait_for_slots(self._patience(deadline))

    def _patience(self, deadline: float) -> float:
        patience = deadline - self.clock()
        if patience <= 0:
            raise DeadlineExceeded("the deadline passed before another engine was there (request_timeout_ms)")
        return patience

    async def _wait_for_slots(self, *seconds: float) -> None:
        """Waits for a change of the engines, for the least of ``seconds`` at most."""
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
        """The connections for new images, never empty. Raises `EngineFailed` or `NotReady` if there are none."""
        connections = self._connections
        # The usual case comes first, since this runs three times an image.
        if len(connections) == 1 and not connections[0].failed:
            return connections
        if asked := self.asked:
            return asked
        if connections:
            raise EngineFailed("the engine has failed and is being started again")
        raise NotReady("the model is not loaded yet")

    def _in_order(self, bulk: bool, among: list[Connection] | None = None) -> list[Connection]:
        """The connections with room for the next image, the best first; all of them if none has room.

        ``among`` are those for new images, unless given.
        """
        connections = among or self._ready()
        if len(connections) == 1:
            return connections
        now = self.clock()
        order = in_order([connection.offer(bulk, now) for connection in connections], self._turn)
        return [connections[place] for place in order] or connections

    def _check_deadline_feasible(self, connection: Connection, deadline: float, bulk: bool) -> None:
        """Raises `Overloaded` if the queue makes ``deadline`` impossible. A deadline in the past is left to others."""
        now = self.clock()
        patience = deadline - now
        arena = connection.arena
        taken = arena.geometry.slots - arena.free
        # The exact number of images ahead is only counted if the deadline would be missed behind all taken slots.
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
        return _overload(reason, slots / capacity if capacity > 0 else _MIN_RETRY)


def _without_standby(living: list[Connection]) -> list[Connection]:
    """Returns those without standby; all if there is no other."""
    return [connection for connection in living if not connection.standby] or living


def _acquire_from(connection: Connection, deadline: float, bulk: bool) -> int | None:
    """Takes a slot of that engine; None if it has no room."""
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
    wait = min(max(wait, _MIN_RETRY), _MAX_RETRY) * (1 + _SPREAD * random.random())
    return Overloaded(f"{reason}; try again in about {wait:.0f} s", retry_after=wait)


__all__ = ["EngineClient", "Slot", "SlotAnswer"]
