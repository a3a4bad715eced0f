"""All open connections of a front-end, and the waiting of those without a request.

    accepted ──▶ Waiting ── a whole head ──▶ Protocol ── answered, and no other has come ────▶ idle
                   ▲  │ too slow, too many: refused, closed                                       │
                   └──┴──────────── silent for a while, or half a head ───────────────────────────┘

There may be thousands of waiting connections, so each is small: `Waiting` has no parser, no timer and no request.
`Connections.sweep` checks the times of all together, in the order in which they began.
"""

from __future__ import annotations

import asyncio
import logging
import re
import select
import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Protocol, TypeVar, cast

from service.api.intake import Intake
from service.errors import HeadersTooLarge, IntakeFull, RequestTimeout, ServiceError
from service.host.usage import trim_memory

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds from the first byte of a request's head to its last: enough for two kilobytes over a very bad network.
HEAD_SECONDS = 10.0
#: Seconds that a connection may be silent before its first request and between two. Browsers open connections ahead of
#: need. Load balancers keep pools for a shorter time than this, so that they are the side that closes.
SILENT_SECONDS = 75.0
#: Bytes of request line and headers at most, twice what nginx allows.
MAX_REQUEST_HEAD_BYTES = 64 * 1024
#: Seconds after an answer, after which a connection gives up its parser and the rest of its request's objects.
_IDLE_SECONDS = 2.0
#: Seconds in which a connection may still send its first request when the service ends.
LAST_CHANCE = 1.0
#: The number of such connections after which their memory is handed back to the system.
_TRIM_EVERY = 1000
#: Seconds between two log lines about connections that were closed to make room.
_LOG_INTERVAL = 60.0

#: The end of a head, and of a body in chunks.
END = b"\r\n\r\n"
#: The first bytes that a request may have. Anything else goes to the parser at once, which finds the fault.
_FIRST_BYTES = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_REQUEST_LINE = re.compile(rb"[A-Z-]+ \S+ HTTP/1\.[01]\r\n")


class Active(Protocol):
    """An `asyncio.Protocol` with a request: the part of `service.frontend.protocol.Protocol` that is used here."""

    transport: asyncio.Transport
    began: float
    """The arrival of the request's first byte, in seconds of the monotonic clock."""

    def connection_made(self, transport: asyncio.Transport) -> None: ...
    def data_received(self, data: bytes) -> None: ...

    def refuse(self, error: ServiceError) -> None:
        """Answers with a problem document and ends the connection."""

    def close(self) -> None:
        """Ends the connection without an answer."""

    def retire(self) -> asyncio.Transport:
        """Gives up all objects of a request and returns the transport for another protocol."""


class Connections:
    """The open connections, at most ``limit``; stands in for uvicorn's set of protocols. Used on the event loop."""

    def __init__(self, limit: int, intake: Intake) -> None:
        self.limit = limit
        self.intake = intake
        self.now = time.monotonic()
        """The time of the last `sweep`. All connections that began since share this one object."""
        self.make: Callable[[], Active]
        """Makes the protocol for a request that has begun. Set by the server."""
        self._active: dict[Active, None] = {}
        self._idle: dict[Active, float] = {}
        """The part of `_active` whose last request is answered, with the time of the answer."""
        self._silent: dict[Waiting, float] = {}
        self._beginning: dict[Waiting, float] = {}
        """Connections that have sent a part of a head, with the time of its first byte."""
        self.ending = False
        """True while the service ends: no connection is kept for another request."""
        self._retired = 0
        self._closed = 0
        self._logged_at = -_LOG_INTERVAL

    def __repr__(self) -> str:
        return f"<Connections {len(self)} of {self.limit}, {len(self._active) - len(self._idle)} at work>"

    def __len__(self) -> int:
        return len(self._active) + len(self._silent) + len(self._beginning)

    def __iter__(self) -> Iterator[Active | Waiting]:
        return chain(self._active, self._silent, self._beginning)

    def wait(self) -> Waiting:
        """The protocol of an accepted connection. The event loop calls it."""
        return Waiting(self)

    # For uvicorn and `Protocol`

    def add(self, protocol: Active) -> None:
        self._active[protocol] = None

    def discard(self, protocol: Active) -> None:
        self._active.pop(protocol, None)
        self._idle.pop(protocol, None)

    def mark_idle(self, protocol: Active) -> None:
        """Notes that the connection's request is answered and no other has begun."""
        self._idle[protocol] = self.now

    def mark_active(self, protocol: Active) -> None:
        """Notes that an idle connection has sent something."""
        self._idle.pop(protocol, None)

    def make_waiting(self, protocol: Active, received: bytes = b"") -> None:
        """Makes the connection a `Waiting` one. ``received`` is the beginning of its next request, if any."""
        self.discard(protocol)
        waiting = Waiting(self)
        waiting.take_over(protocol.retire())
        if received:
            waiting.data_received(received)
        elif self.ending:
            waiting.shutdown()

    # For `Waiting`

    def add_silent(self, waiting: Waiting) -> None:
        self._silent[waiting] = self.now
        if len(self) > self.limit:
            self._make_room(waiting)

    def add_beginning(self, waiting: Waiting) -> None:
        self._silent.pop(waiting, None)
        self._beginning[waiting] = self.now

    def remove(self, waiting: Waiting) -> None:
        self._silent.pop(waiting, None)
        self._beginning.pop(waiting, None)

    def has(self, waiting: Waiting) -> bool:
        """True if the connection still waits."""
        return waiting in self._silent or waiting in self._beginning

    # For the server

    def sweep(self) -> None:
        """Ends connections that have waited too long. To be called several times a second."""
        self.now = now = time.monotonic()
        for waiting in _before(self._silent, now - SILENT_SECONDS):
            waiting.close()
        for waiting in _before(self._beginning, now - HEAD_SECONDS):
            waiting.refuse(
                RequestTimeout(f"the request's head was not complete {HEAD_SECONDS:g} s after its first byte")
            )
        for protocol in _before(self._idle, now - _IDLE_SECONDS):
            self.make_waiting(protocol)
            self._retired += 1
        if self._retired >= _TRIM_EVERY:
            self._retired = 0
            trim_memory()

    def _make_room(self, newcomer: Waiting) -> None:
        """Closes one connection: the longest idle one, else the one with the oldest partial head, else the newcomer."""
        every: chain[Active | Waiting] = chain(self._silent, self._idle, self._beginning)
        victim = next((one for one in every if one is not newcomer and not readable(one.transport)), newcomer)
        victim.close()
        self._closed += 1
        if self.now - self._logged_at >= _LOG_INTERVAL:
            self._logged_at = self.now
            log.warning(
                "%d connections are open, which is the limit (max_connections): idle ones are closed, %d so far",
                self.limit,
                self._closed,
            )


class Waiting(asyncio.Protocol):
    """A connection without a request: silent, or with a partial head."""

    __slots__ = ("_began", "_connections", "_fresh", "_received", "transport")

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._received = b""
        self._began = 0.0
        self._fresh = True
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._connections.add_silent(self)
        if self._connections.ending:  # a handshake that ended late
            self.shutdown()

    def take_over(self, transport: asyncio.Transport) -> None:
        """Takes over a connection whose last request is answered."""
        self._fresh = False
        self.transport = transport
        transport.set_protocol(self)
        self._connections.add_silent(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unregister()

    def data_received(self, data: bytes) -> None:
        if not self._received:
            data = data.lstrip(b"\r\n")  # RFC 9112, 2.2: empty lines before a request are ignored
            if not data:
                return
            self._began = time.monotonic()
        received = self._received + data
        end = received.find(END, max(0, len(self._received) - len(END)))
        if 0 <= end <= MAX_REQUEST_HEAD_BYTES or not _plausible(received):
            self._activate().data_received(received)
        elif len(received) > MAX_REQUEST_HEAD_BYTES:
            self.refuse(
                HeadersTooLarge(f"request line and headers are more than {MAX_REQUEST_HEAD_BYTES:,} bytes")
            )
        elif not self._connections.intake.take(len(data)):
            self.refuse(IntakeFull("too many requests are on their way; try again in a moment"))
        else:
            if not self._received:
                self._connections.add_beginning(self)
            self._received = received

    def refuse(self, error: ServiceError) -> None:
        """Answers with a problem document and ends the connection."""
        self._activate().refuse(error)

    def close(self) -> None:
        """Ends the connection without an answer."""
        self._unregister()
        self.transport.abort()

    def shutdown(self) -> None:
        """Closes when the service ends. A client that is about to ask gets `LAST_CHANCE` seconds. uvicorn calls it."""
        if self._fresh or self._received or readable(self.transport):
            asyncio.get_running_loop().call_later(LAST_CHANCE, self._give_up)
        else:
            self.close()

    def _give_up(self) -> None:
        if self._connections.has(self):
            self.close()

    def _activate(self) -> Active:
        """Hands the connection to a protocol that can parse and answer, and returns it."""
        self._unregister()
        protocol = self._connections.make()
        protocol.began = self._began
        protocol.connection_made(self.transport)
        self.transport.set_protocol(cast(asyncio.Protocol, protocol))
        return protocol

    def _unregister(self) -> None:
        self._connections.remove(self)
        self._connections.intake.give(len(self._received))
        self._received = b""


def readable(transport: asyncio.Transport) -> bool:
    """True if bytes have arrived that the event loop has not read; closing would then reset the connection."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _plausible(data: bytes) -> bool:
    """True if the bytes may be the beginning of a request."""
    return data[0] in _FIRST_BYTES and (b"\n" not in data or _REQUEST_LINE.match(data) is not None)


def _before(began: dict[T, float], limit: float) -> list[T]:
    """The entries that began before ``limit``; ``began`` is in the order of time."""
    found = []
    for one, when in began.items():
        if when > limit:
            break
        found.append(one)
    return found
