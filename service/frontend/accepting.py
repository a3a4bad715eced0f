"""A front-end's side of the shared listening socket: it takes no more than its share of the connections.

    readable ──▶ at most a share? ── yes ──▶ accept, a few at a time ──▶ Waiting
                        │ no                        ▲
                        └── a moment for the others ┘ then one

The kernel wakes every front-end for each connection, and the first to come gets it. A loop that accepted until nothing
is left would take a whole burst of clients, and keep them as long as they live.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time

from service.frontend.connections import HEAD_SECONDS, LAST_CHANCE, Connections
from service.frontend.listener import BACKLOG
from service.shared.connection_counts import Share

log = logging.getLogger(__name__)

#: Connections accepted in one turn of the loop: one, and another for so many open ones, which make the turns longer.
_OPEN_FOR_ANOTHER = 8
#: The most connections accepted in one turn. Those closed to make room give their descriptors back in the next turn, so
#: this is far fewer than `service.frontend.descriptors` leaves.
_MOST_EACH_TURN = 16
#: Seconds that a front-end with more than its share leaves to the others, which are awake already if they are idle.
_FOR_OTHERS = 0.005
#: Seconds after an error, such as one for want of descriptors, before another try.
_AFTER_ERROR = 0.1
#: Seconds between two log lines about such errors.
_SAY_AGAIN = 60.0


class Acceptor:
    """Accepts the connections of ``listener`` into ``connections``, by TLS if there is a ``context``.

    Used on the event loop. `start` begins it, `close` ends it.
    """

    def __init__(
        self,
        listener: socket.socket,
        connections: Connections,
        share: Share,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._listener = listener
        self._connections = connections
        self._share = share
        self._context = context
        self._handshake_seconds = None if context is None else HEAD_SECONDS
        self._loop = asyncio.get_running_loop()
        self._arriving: dict[socket.socket, asyncio.Task[None]] = {}
        """Accepted connections that `Connections` does not know yet."""
        self._pause: asyncio.TimerHandle | None = None
        self._takes_all = self._closed = False
        self._said_at = -_SAY_AGAIN

    def __repr__(self) -> str:
        return f"<Acceptor of {self._listener!r}, {self.held} connections>"

    @property
    def held(self) -> int:
        """The number of this front-end's connections, those included whose handshake is not finished."""
        return len(self._connections) + len(self._arriving)

    def start(self) -> None:
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._accept)

    def take_all(self) -> None:
        """Accepts whatever comes from now on, above all in `close`: nobody else may be there to take it."""
        self._takes_all = True

    def close(self) -> None:
        """Accepts no more. After `take_all` the connections that wait in the kernel are accepted before."""
        if self._closed:
            return
        for _ in range(BACKLOG if self._takes_all else 0):
            if not self._accept_one():
                break
        self._closed = True
        self._loop.remove_reader(self._listener)
        if self._pause is not None:
            self._pause.cancel()

    async def settle(self) -> None:
        """Waits until `Connections` knows all accepted connections, for `LAST_CHANCE` seconds at most."""
        if self._arriving:
            await asyncio.wait(self._arriving.values(), timeout=LAST_CHANCE)

    def _accept(self) -> None:
        held = self.held
        for more in range(min(1 + held // _OPEN_FOR_ANOTHER, _MOST_EACH_TURN)):
            if not self._takes_all and not self._share.allows_another(held + more):
                self._rest(_FOR_OTHERS)
                return
            if not self._accept_one():
                return

    def _rest(self, seconds: float) -> None:
        """Leaves the socket alone. It stays readable meanwhile, and would wake the loop again at once."""
        if self._pause is None:
            self._loop.remove_reader(self._listener)
            self._pause = self._loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener, self._accept)
        self._accept_one()  # whatever the share: nobody has taken it

    def _accept_one(self) -> bool:
        """Accepts a connection. False if none is there, or none can be accepted now."""
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionAbortedError:  # that client has gone
            return True
        except OSError as error:
            self._complain(error)
            self._rest(_AFTER_ERROR)
            return False
        connection.setblocking(False)
        self._arriving[connection] = self._loop.create_task(self._receive(connection))
        return True

    async def _receive(self, connection: socket.socket) -> None:
        """Hands an accepted connection to `Connections`."""
        try:
            await self._loop.connect_accepted_socket(
                self._connections.wait,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._handshake_seconds,
            )
        except OSError as error:  # TLS was not agreed on in time, or the client has gone
            log.debug("a connection was lost before its first byte: %s", error)
            connection.close()
        finally:
            del self._arriving[connection]

    def _complain(self, error: OSError) -> None:
        now = time.monotonic()
        if now - self._said_at >= _SAY_AGAIN:
            self._said_at = now
            log.error("connections cannot be accepted, and wait: %s", error.strerror)
