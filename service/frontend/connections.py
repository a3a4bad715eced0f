"""All open connections of a front-end, and the waiting of those without a request.

    accepted ──▶ Waiting ── a whole head ──▶ Protocol ── answered, its successor not there ──▶ resting
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
_REST_SECONDS = 2.0
#: Seconds in which a connection may still send its first request when the service ends.
LAST_CHANCE = 1.0
#: The number of such connections after which their memory is handed back to the system.
_MANY = 1000
#: Seconds between two log lines about connections that were closed to make room.
_SAY_AGAIN = 60.0

#: The end of a head, and of a body in chunks.
END = b"\r\n\r\n"
#: The first bytes that a request may have. Anything else goes to the parser at once, which finds the fault.
_FIRST_BYTES = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_REQUEST_LINE = re.compile(rb"[A-Z-]+ \S+ HTTP/1\.[01]\r\n")


class Talking(Protocol):
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
        self.make: Callable[[], Talking]
        """Makes the protocol for a request that has begun. Set by the server."""
        self._talking: dict[Talking, None] = {}
        self._resting: dict[Talking, float] = {}
        """The part of `_talking` whose last request is answered, with the time of the answer."""
        self._silent: dict[Waiting, float] = {}
        self._beginning: dict[Waiting, float] = {}
        """Connections that have sent a part of a head, with the time of its first byte."""
        self.ending = False
        """True while the service ends: no connection is kept for another request."""
        self._put_aside = 0
        self._shed = 0
        self._said_at = -_SAY_AGAIN

    def __repr__(self) -> str:
        return f"<Connections {len(self)} of {self.limit}, {len(self._talking) - len(self._resting)} at work>"

    def __len__(self) -> int:
        return len(self._talking) + len(self._silent) + len(self._beginning)

    def __iter__(self) -> Iterator[Talking | Waiting]:
        return chain(self._talking, self._silent, self._beginning)

    def wait(self) -> Waiting:
        """The protocol of an accepted connection. The event loop calls it."""
        return Waiting(self)

    # For uvicorn and `Protocol`

    def add(self, protocol: Talking) -> None:
        self._talking[protocol] = None

    def discard(self, protocol: Talking) -> None:
        self._talking.pop(protocol, None)
        self._resting.pop(protocol, None)

    def rest(self, protocol: Talking) -> None:
        """Notes that the connection's request is answered and no other has begun."""
        self._resting[protocol] = self.now

    def wake(self, protocol: Talking) -> None:
        """Notes that a resting connection has sent something."""
        self._resting.pop(protocol, None)

    def put_aside(self, protocol: Talking, said: bytes = b"") -> None:
        """Makes the connection a `Waiting` one. ``said`` is the beginning of its next request, if any."""
        self.discard(protocol)
        waiting = Waiting(self)
        waiting.take_over(protocol.retire())
        if said:
            waiting.data_received(said)
        elif self.ending:
            waiting.shutdown()

    # For `Waiting`

    def silent(self, waiting: Waiting) -> None:
        self._silent[waiting] = self.now
        if len(self) > self.limit:
            self._make_room(waiting)

    def beginning(self, waiting: Waiting) -> None:
        self._silent.pop(waiting, None)
        self._beginning[waiting] = self.now

    def gone(self, waiting: Waiting) -> None:
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
        for protocol in _before(self._resting, now - _REST_SECONDS):
            self.put_aside(protocol)
            self._put_aside += 1
        if self._put_aside >= _MANY:
            self._put_aside = 0
            trim_memory()

    def _make_room(self, newcomer: Waiting) -> None:
        """Closes one connection: the longest idle one, else the one with the oldest partial head, else the newcomer."""
        idle: chain[Talking | Waiting] = chain(self._silent, self._resting, self._beginning)
        victim = next((one for one in idle if one is not newcomer and not readable(one.transport)), newcomer)
        victim.close()
        self._shed += 1
        if self.now - self._said_at >= _SAY_AGAIN:
            self._said_at = self.now
            log.warning(
                "%d connections are open, which is the limit (max_connections): idle ones are closed, %d so far",
                self.limit,
                self._shed,
            )


class Waiting(asyncio.Protocol):
    """A connection without a request: silent, or with a partial head."""

    __slots__ = ("_began", "_connections", "_fresh", "_said", "transport")

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._said = b""
        self._began = 0.0
        self._fresh = True
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._connections.silent(self)

    def take_over(self, transport: asyncio.Transport) -> None:
        """Takes over a connection whose last request is answered."""
        self._fresh = False
        self.transport = transport
        transport.set_protocol(self)
        self._connections.silent(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def data_received(self, data: bytes) -> None:
        if not self._said:
            data = data.lstrip(b"\r\n")  # RFC 9112, 2.2: empty lines before a request are ignored
            if not data:
                return
            self._began = time.monotonic()
        said = self._said + data
        end = said.find(END, max(0, len(self._said) - len(END)))
        if 0 <= end <= MAX_REQUEST_HEAD_BYTES or not _plausible(said):
            self._speak().data_received(said)
        elif len(said) > MAX_REQUEST_HEAD_BYTES:
            self.refuse(
                HeadersTooLarge(f"request line and headers are more than {MAX_REQUEST_HEAD_BYTES:,} bytes")
            )
        elif not self._connections.intake.take(len(data)):
            self.refuse(IntakeFull("too many requests are on their way; try again in a moment"))
        else:
            if not self._said:
                self._connections.beginning(self)
            self._said = said

    def refuse(self, error: ServiceError) -> None:
        """Answers with a problem document and ends the connection."""
        self._speak().refuse(error)

    def close(self) -> None:
        """Ends the connection without an answer."""
        self._leave()
        self.transport.abort()

    def shutdown(self) -> None:
        """Closes when the service ends. A client that is about to ask gets `LAST_CHANCE` seconds. uvicorn calls it."""
        if self._fresh or self._said or readable(self.transport):
            asyncio.get_running_loop().call_later(LAST_CHANCE, self._give_up)
        else:
            self.close()

    def _give_up(self) -> None:
        if self._connections.has(self):
            self.close()

    def _speak(self) -> Talking:
        """Hands the connection to a protocol that can parse and answer, and returns it."""
        self._leave()
        protocol = self._connections.make()
        protocol.began = self._began
        protocol.connection_made(self.transport)
        self.transport.set_protocol(cast(asyncio.Protocol, protocol))
        return protocol

    def _leave(self) -> None:
        self._connections.gone(self)
        self._connections.intake.give(len(self._said))
        self._said = b""


def readable(transport: asyncio.Transport) -> bool:
    """True if bytes have arrived that the event loop has not read; closing would then reset the connection."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _plausible(said: bytes) -> bool:
    """True if the bytes may be the beginning of a request."""
    return said[0] in _FIRST_BYTES and (b"\n" not in said or _REQUEST_LINE.match(said) is not None)


def _before(began: dict[T, float], limit: float) -> list[T]:
    """The entries that began before ``limit``; ``began`` is in the order of time."""
    found = []
    for one, when in began.items():
        if when > limit:
            break
        found.append(one)
    return found
