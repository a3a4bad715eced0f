"""Every open connection of a front-end, and what waits between two requests.

    accepted ──▶ Waiting ── a whole head ──▶ Protocol ── answered, its successor not there ──▶ resting
                   ▲  │ too slow, too many: refused, closed                                       │
                   └──┴──────────── silent for a while, or half a head ───────────────────────────┘

A connection that waits is kept as small as it can be (`Waiting` has no parser, no timer and no request), since
there may be thousands. Their times are looked at together, in the order in which they began.
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

from service.api.intake import Intake, hand_back
from service.errors import HeadersTooLarge, IntakeFull, RequestTimeout, ServiceError

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds from the first byte of a request's head to its last: two kilobytes over the worst of networks.
HEAD_SECONDS = 10.0
#: Seconds that a connection may be silent, before its first request and between two. Browsers open some ahead of need;
#: load balancers keep pools, for less long than this, so that they close first.
SILENT_SECONDS = 75.0
#: Bytes of request line and headers, twice what nginx allows.
HEAD_BYTES = 64 * 1024
#: Seconds of rest after which what was needed for requests is given up.
_REST_SECONDS = 2.0
#: Seconds that a connection which has not said anything yet may still bring its request when the service ends.
LAST_CHANCE = 1.0
#: Connections put aside after which the memory that they had is handed back to the system.
_MANY = 1000
#: Seconds between two lines in the log about connections that had to go.
_SAY_AGAIN = 60.0

END = b"\r\n\r\n"
#: How a request begins. What begins otherwise is shown to the parser at once, which knows what is wrong.
_FIRST_BYTES = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_REQUEST_LINE = re.compile(rb"[A-Z-]+ \S+ HTTP/1\.[01]\r\n")


class Talking(Protocol):
    """An `asyncio.Protocol` with a request: what is wanted here of `service.frontend.protocol.Protocol`."""

    transport: asyncio.Transport
    began: float
    """When the first byte of the request came, in seconds of the monotonic clock."""

    def connection_made(self, transport: asyncio.Transport) -> None: ...
    def data_received(self, data: bytes) -> None: ...

    def refuse(self, error: ServiceError) -> None:
        """Answers what is no request, and ends."""

    def close(self) -> None:
        """Ends without a word."""

    def retire(self) -> asyncio.Transport:
        """Gives up all that a request needs, and hands over the connection."""


class Connections:
    """What uvicorn knows as a set of protocols, with a limit. Lives on the event loop."""

    def __init__(self, most: int, intake: Intake) -> None:
        self.most = most
        self.intake = intake
        self.now = time.monotonic()
        """The last `sweep`; one object for all who began since."""
        self.make: Callable[[], Talking]
        """For a request that has begun. Set by the server."""
        self._talking: dict[Talking, None] = {}
        self._resting: dict[Talking, float] = {}
        """Of those that talk: whose last request was answered, and when."""
        self._silent: dict[Waiting, float] = {}
        self._beginning: dict[Waiting, float] = {}
        """Who has sent a part of a head, and when that began."""
        self.ending = False
        """Whether the service ends: no connection is kept for another request."""
        self._put_aside = 0
        self._shed = 0
        self._said_at = -_SAY_AGAIN

    def __repr__(self) -> str:
        return f"<Connections {len(self)} of {self.most}, {len(self._talking) - len(self._resting)} at work>"

    def __len__(self) -> int:
        return len(self._talking) + len(self._silent) + len(self._beginning)

    def __iter__(self) -> Iterator[Talking | Waiting]:
        return chain(self._talking, self._silent, self._beginning)

    def wait(self) -> Waiting:
        """For a connection that is accepted. The event loop calls it."""
        return Waiting(self)

    # For uvicorn and `Protocol`

    def add(self, protocol: Talking) -> None:
        self._talking[protocol] = None

    def discard(self, protocol: Talking) -> None:
        self._talking.pop(protocol, None)
        self._resting.pop(protocol, None)

    def rest(self, protocol: Talking) -> None:
        """Its request was answered and nothing more is there."""
        self._resting[protocol] = self.now

    def wake(self, protocol: Talking) -> None:
        """It has said something."""
        self._resting.pop(protocol, None)

    def put_aside(self, protocol: Talking, said: bytes = b"") -> None:
        """Between two requests, or with the beginning of the next: all that a request needs is given up."""
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
        if len(self) > self.most:
            self._make_room(waiting)

    def beginning(self, waiting: Waiting) -> None:
        self._silent.pop(waiting, None)
        self._beginning[waiting] = self.now

    def gone(self, waiting: Waiting) -> None:
        self._silent.pop(waiting, None)
        self._beginning.pop(waiting, None)

    def has(self, waiting: Waiting) -> bool:
        """Whether it still waits."""
        return waiting in self._silent or waiting in self._beginning

    # For the server

    def sweep(self) -> None:
        """Ends what has waited for too long. To be called several times a second."""
        self.now = now = time.monotonic()
        for waiting in _before(self._silent, now - SILENT_SECONDS):
            waiting.close()
        for waiting in _before(self._beginning, now - HEAD_SECONDS):
            waiting.refuse(
                RequestTimeout(f"the request's head was not there {HEAD_SECONDS:g} s after its first byte")
            )
        for protocol in _before(self._resting, now - _REST_SECONDS):
            self.put_aside(protocol)
            self._put_aside += 1
        if self._put_aside >= _MANY:
            self._put_aside = 0
            hand_back()

    def _make_room(self, newcomer: Waiting) -> None:
        """Closes who has been idle for longest, then whose head is on its way for longest; else the newcomer."""
        idle: chain[Talking | Waiting] = chain(self._silent, self._resting, self._beginning)
        victim = next((one for one in idle if one is not newcomer and not readable(one.transport)), newcomer)
        victim.close()
        self._shed += 1
        if self.now - self._said_at >= _SAY_AGAIN:
            self._said_at = self.now
            log.warning(
                "%d connections are open, which is the limit (max_connections): idle ones are closed, %d so far",
                self.most,
                self._shed,
            )


class Waiting(asyncio.Protocol):
    """A connection without a request: silent, or in the middle of a head."""

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
        """The connection's last request was answered."""
        self._fresh = False
        self.transport = transport
        transport.set_protocol(self)
        self._connections.silent(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def data_received(self, data: bytes) -> None:
        if not self._said:
            data = data.lstrip(b"\r\n")  # 9112 2.2: empty lines before a request mean nothing
            if not data:
                return
            self._began = time.monotonic()
        said = self._said + data
        end = said.find(END, max(0, len(self._said) - len(END)))
        if 0 <= end <= HEAD_BYTES or not _plausible(said):
            self._speak().data_received(said)
        elif len(said) > HEAD_BYTES:
            self.refuse(HeadersTooLarge(f"request line and headers are more than {HEAD_BYTES:,} bytes"))
        elif not self._connections.intake.take(len(data)):
            self.refuse(IntakeFull("too many requests are on their way; try again in a moment"))
        else:
            if not self._said:
                self._connections.beginning(self)
            self._said = said

    def refuse(self, error: ServiceError) -> None:
        """Answers what is no request, and ends."""
        self._speak().refuse(error)

    def close(self) -> None:
        """Ends without a word."""
        self._leave()
        self.transport.abort()

    def shutdown(self) -> None:
        """The service ends: whoever is about to ask is answered. uvicorn calls it."""
        if self._fresh or self._said or readable(self.transport):
            asyncio.get_running_loop().call_later(LAST_CHANCE, self._give_up)
        else:
            self.close()

    def _give_up(self) -> None:
        if self._connections.has(self):
            self.close()

    def _speak(self) -> Talking:
        """What takes over, now that there is something to be said."""
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
    """Whether something has arrived that the event loop has not read yet: closing now would reset it."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _plausible(said: bytes) -> bool:
    """Whether it may be the beginning of a request."""
    return said[0] in _FIRST_BYTES and (b"\n" not in said or _REQUEST_LINE.match(said) is not None)


def _before(began: dict[T, float], limit: float) -> list[T]:
    """Those that began before; they are in order."""
    found = []
    for one, when in began.items():
        if when > limit:
            break
        found.append(one)
    return found
