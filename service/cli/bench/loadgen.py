"""The load generator: one thread, one selector, requests that were written before the first is sent.

    closed loop   N clients, each with a connection, each sends when its last answer is there
    open loop     requests leave at random moments (Poisson) at a given rate, whatever the answers do

In the open loop a request's latency counts from the moment at which it was due, not from the moment at
which a connection was free for it: a server that stalls is charged for everybody who had to wait in
the meantime (the "coordinated omission" that Gil Tene describes is what happens otherwise). How late
the generator itself was is measured as well (``lags``), so that it cannot be mistaken for the server.

Answers are parsed by httptools (llhttp, in C); sockets are used directly. About 25 µs of CPU a request.
"""

from __future__ import annotations

import math
import random
import re
import select
import selectors
import socket
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle

from httptools import HttpParserError, HttpResponseParser

#: Connections of the open loop at most; further requests wait for one, and their clocks run.
MOST_CONNECTIONS = 1000
#: Seconds that a client of the closed loop waits after its connection failed, instead of spinning.
_AFTER_FAILURE = 0.1
#: Seconds between two looks at what is overdue, and two reports of progress.
_SWEEP = 0.25
_CHUNK = 1 << 16
_INFERENCE = re.compile(rb"inference;dur=([0-9.]+)")
_REFUSED = 429


@dataclass(frozen=True)
class Plan:
    """What to send where. ``requests`` are whole HTTP/1.1 requests, sent in turn.

    ``rate`` (requests a second) makes the loop open, else ``clients`` connections make it closed.
    Requests that were due in the first ``warm_up`` seconds are left out of the results.
    """

    host: str
    port: int
    requests: Sequence[bytes]
    duration: float
    clients: int = 1
    rate: float | None = None
    warm_up: float = 0.0
    timeout: float = 60.0
    timings: bool = False
    """Whether each answer's ``Server-Timing`` is read for the time of its forward pass."""


@dataclass
class Tally:
    """What came of it. Times in seconds."""

    latencies: array[float] = field(default_factory=lambda: array("d"))
    """Of every answer with a 2xx status, in the order of arrival."""
    inferences: array[float] = field(default_factory=lambda: array("d"))
    """With `Plan.timings`, for each latency how long the forward pass took that the request rode in."""
    refusals: array[float] = field(default_factory=lambda: array("d"))
    """Of every 429."""
    statuses: Counter[int] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    """Requests without an answer: connection refused, reset, closed, timeout."""
    lags: array[float] = field(default_factory=lambda: array("d"))
    """Open loop: how long after it was due each request left, for the generator's own reasons."""
    sent: int = 0
    in_time: int = 0
    """2xx answers that came between the warm-up and the end, whenever they were sent: throughput is of these."""
    seconds: float = 0.0
    """What throughput is measured over: the duration without the warm-up."""
    cpu: float = 0.0
    """CPU seconds of this process, warm-up included."""
    cpu_requests: int = 0
    """Requests that ``cpu`` was spent on."""
    most_connections: int = 0

    @property
    def answered(self) -> int:
        return sum(self.statuses.values())

    @property
    def throughput(self) -> float:
        """2xx answers a second."""
        return self.in_time / self.seconds if self.seconds > 0 else 0.0


def generate(plan: Plan, progress: Callable[[float, Tally], None] = lambda elapsed, tally: None) -> Tally:
    """Sends the plan's load and waits for what is under way at its end.

    ``progress`` gets the seconds since the start and what there is so far, a few times a second.
    """
    return _Run(plan, progress).run()


class _Run:
    """One run. Connections tell it of answers; it decides what is sent next."""

    def __init__(self, plan: Plan, progress: Callable[[float, Tally], None]) -> None:
        self.plan = plan
        self.selector = selectors.DefaultSelector()
        self.tally = Tally(seconds=max(0.0, plan.duration - plan.warm_up))
        # Resolved once: a look-up for every connection would be part of the latency.
        found = socket.getaddrinfo(plan.host, plan.port, type=socket.SOCK_STREAM)[0]
        self.family, self.address = found[0], found[4]
        self._connection = _TimedConnection if plan.timings else _Connection
        self._progress = progress
        self._requests = cycle(plan.requests)
        self._random = random.Random(1)
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._waiting: deque[float] = deque()
        """When each request was due that no connection was free for."""
        self._resting: deque[float] = deque()
        """When each client of the closed loop goes on whose connection failed."""
        self._began = self._counted_from = self._ends = self._sweep_due = self._next_due = 0.0

    def run(self) -> Tally:
        cpu = time.process_time()
        self._began = now = time.monotonic()
        self._counted_from, self._ends = now + self.plan.warm_up, now + self.plan.duration
        self._sweep_due = now + _SWEEP
        self._next_due = now + self._gap()
        if self.plan.rate is None:
            self._resting.extend([now] * self.plan.clients)
        while now < self._ends or self._busy or self._waiting:
            self._launch(now)
            for key, _ in self._select(now):
                key.data()
            now = time.monotonic()
            if now >= self._sweep_due:
                self._sweep(now)
        self._close()
        self.tally.cpu = time.process_time() - cpu
        return self.tally

    def answered(self, connection: _Connection, status: int, now: float) -> None:
        """An answer is complete. A kept connection is idle now, or busy again."""
        self._busy.discard(connection)
        good = 200 <= status < 300
        # A window of time has as many requests under way at its beginning as at its end: leaving out those
        # that were sent before it would take a whole latency's worth of answers from the throughput.
        self.tally.in_time += good and self._counted_from <= now <= self._ends
        if connection.due >= self._counted_from:
            self.tally.statuses[status] += 1
            if status == _REFUSED:
                self.tally.refusals.append(now - connection.due)
            if good:
                self.tally.latencies.append(now - connection.due)
                if self.plan.timings:
                    self.tally.inferences.append(connection.inference)
        if connection.kept:
            self._go_on(connection, now)
        else:
            connection.close()
            self._replace(now)

    def failed(self, connection: _Connection, reason: str) -> None:
        """There will be no answer over ``connection``."""
        connection.close()
        if connection in self._idle:  # the server closed what it had kept long enough
            self._idle.remove(connection)
            return
        self._busy.discard(connection)
        if connection.due >= self._counted_from:
            self.tally.failures[reason] += 1
        if self.plan.rate is None:
            self._resting.append(time.monotonic() + _AFTER_FAILURE)

    def _select(self, now: float) -> list[tuple[selectors.SelectorKey, int]]:
        due = self._sweep_due
        if self.plan.rate is not None and now < self._ends:
            due = min(due, self._next_due)
            # epoll sleeps in whole milliseconds, select in microseconds: it waits for the selector.
            select.select([self.selector], [], [], max(0.0, due - time.monotonic()))
            return self.selector.select(0)
        return self.selector.select(max(0.0, min([due, *self._resting]) - now))

    def _launch(self, now: float) -> None:
        """Sends whatever is due."""
        while self.plan.rate is not None and self._next_due <= min(now, self._ends):
            self._dispatch(self._next_due)
            self._next_due += self._gap()
        while self._resting and self._resting[0] <= now:
            self._resting.popleft()
            if now < self._ends:
                self._send(self._connection(self), now, now)

    def _gap(self) -> float:
        return self._random.expovariate(self.plan.rate) if self.plan.rate else 0.0

    def _dispatch(self, due: float) -> None:
        now = time.monotonic()
        if due >= self._counted_from:
            self.tally.lags.append(now - due)
        if self._idle:
            self._send(self._idle.pop(), due, now)
        elif len(self._busy) < MOST_CONNECTIONS:
            self._send(self._connection(self), due, now)
        else:
            self._waiting.append(due)

    def _go_on(self, connection: _Connection, now: float) -> None:
        if self._waiting:
            self._send(connection, self._waiting.popleft(), now)
        elif self.plan.rate is None and now < self._ends:
            self._send(connection, now, now)
        else:
            self._idle.append(connection)

    def _replace(self, now: float) -> None:
        """The server closed the connection after its answer: its place in the load stays."""
        if self._waiting:
            self._send(self._connection(self), self._waiting.popleft(), now)
        elif self.plan.rate is None and now < self._ends:
            self._send(self._connection(self), now, now)

    def _send(self, connection: _Connection, due: float, now: float) -> None:
        self._busy.add(connection)
        self.tally.most_connections = max(self.tally.most_connections, len(self._busy))
        self.tally.cpu_requests += 1
        self.tally.sent += due >= self._counted_from
        connection.send(next(self._requests), due, now)

    def _sweep(self, now: float) -> None:
        self._sweep_due = now + _SWEEP
        for connection in [one for one in self._busy if now - one.sent_at > self.plan.timeout]:
            self.failed(connection, "timeout")
        while self._waiting and now - self._waiting[0] > self.plan.timeout:
            self._waiting.popleft()
            self.tally.failures["timeout"] += 1
        self._progress(now - self._began, self.tally)

    def _close(self) -> None:
        for connection in self._idle:
            connection.close()
        self.selector.close()


class _Connection:
    """A connection that carries one request at a time. Opened when it is made, without waiting."""

    def __init__(self, run: _Run) -> None:
        self.due = self.sent_at = 0.0
        self.inference = math.nan
        self.kept = True
        self._run = run
        self._unsent = memoryview(b"")
        self._events = selectors.EVENT_READ
        self._parser = HttpResponseParser(self)
        self._socket = socket.socket(run.family, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._status = 0
        self._connecting = True
        run.selector.register(self._socket, self._events, self._ready)
        self._socket.connect_ex(run.address)  # its outcome shows when the socket becomes writable

    def send(self, request: bytes, due: float, now: float) -> None:
        """Sends ``request``, which was ``due`` then."""
        self.due, self.sent_at = due, now
        self._unsent = memoryview(request)
        if self._connecting:
            self._listen_for(selectors.EVENT_READ | selectors.EVENT_WRITE)
        else:
            self._write()

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._run.selector.unregister(self._socket)
            self._socket.close()

    def on_message_complete(self) -> None:
        """httptools: the answer is whole. What follows from it must not happen inside of the parser."""
        status = self._parser.get_status_code()
        if status >= 200:  # 1xx announces the answer
            self._status = status
            self.kept = self._parser.should_keep_alive()

    def _ready(self) -> None:
        if self._connecting:
            error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                self._run.failed(self, type(OSError(error, "")).__name__)
                return
            self._connecting = False
        if self._unsent:
            self._write()
        self._read()

    def _write(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._run.failed(self, type(error).__name__)
            return
        self._unsent = self._unsent[sent:]
        self._listen_for(
            selectors.EVENT_READ | selectors.EVENT_WRITE if self._unsent else selectors.EVENT_READ
        )

    def _listen_for(self, events: int) -> None:
        if events != self._events:
            self._events = events
            self._run.selector.modify(self._socket, events, self._ready)

    def _read(self) -> None:
        if self._socket.fileno() < 0:
            return
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            self._run.failed(self, type(error).__name__)
            return
        if not data:
            self._run.failed(self, "closed by the server")
            return
        try:
            self._parser.feed_data(data)
        except HttpParserError:
            self._run.failed(self, "not HTTP")
            return
        if self._status:
            status, self._status = self._status, 0
            self._run.answered(self, status, time.monotonic())


class _TimedConnection(_Connection):
    """One that reads how long the forward pass took. A class of its own: hearing of headers costs a call for each."""

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: one header of the answer."""
        if name.lower() == b"server-timing":
            found = _INFERENCE.search(value)
            self.inference = float(found[1]) / 1000 if found else math.nan
