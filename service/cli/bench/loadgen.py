"""The load generator: one thread, one selector, all requests written before the first is sent.

    closed loop   N clients with a connection each; a client sends its next request when it has its answer
    open loop     requests leave at random moments (Poisson) at a given rate, whether answers come or not

In the open loop a request's latency counts from the moment at which it was due, not from the moment at which a
connection was free for it. So a server that stalls is charged for every request that had to wait meanwhile; leaving
those out is the "coordinated omission" that Gil Tene describes. The generator's own lateness is measured as ``lags``,
so that it is not mistaken for the server's.

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

#: Connections of the open loop at most. Further requests wait for a free one, and their latency counts that wait.
MAX_CONNECTIONS = 1000
#: Seconds that a client of the closed loop waits after its connection failed, so that it does not spin.
_AFTER_FAILURE = 0.1
#: Seconds between two checks for timeouts and two reports of progress.
_SWEEP = 0.25
_CHUNK = 1 << 16
_INFERENCE = re.compile(rb"inference;dur=([0-9.]+)")
_REFUSED = 429


@dataclass(frozen=True)
class Plan:
    """The load on one server. ``requests`` are whole HTTP/1.1 requests, sent in turn.

    With ``rate``, in requests a second, the loop is open; without, it is closed and has ``clients`` connections.
    ``duration``, ``warm_up`` and ``timeout`` are seconds. Requests that were due during the warm-up do not count.
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
    """Read the time of the forward pass from each answer's ``Server-Timing`` header."""


@dataclass
class Tally:
    """The results of one run. Times are seconds."""

    latencies: array[float] = field(default_factory=lambda: array("d"))
    """The latency of every answer with a 2xx status, in the order of arrival."""
    inferences: array[float] = field(default_factory=lambda: array("d"))
    """The time of the request's forward pass for each latency; empty without `Plan.timings`."""
    refusals: array[float] = field(default_factory=lambda: array("d"))
    """The latency of every 429."""
    statuses: Counter[int] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    """Requests without an answer, by reason: connection refused, reset, closed, timeout."""
    lags: array[float] = field(default_factory=lambda: array("d"))
    """Open loop: the generator's own delay of each request."""
    sent: int = 0
    in_time: int = 0
    """2xx answers that came between the warm-up and the end, whenever their requests left; see `throughput`."""
    seconds: float = 0.0
    """The duration without the warm-up."""
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
        """2xx answers a second, between the warm-up and the end."""
        return self.in_time / self.seconds if self.seconds > 0 else 0.0


def generate(plan: Plan, progress: Callable[[float, Tally], None] = lambda elapsed, tally: None) -> Tally:
    """Sends the plan's load, then waits for the answers that are still due. Raises `OSError` for an unknown host.

    ``progress`` is called a few times a second with the seconds since the start and the results so far.
    """
    return _Run(plan, progress).run()


class _Run:
    """One run: connections report their answers to it, and it decides what they send next."""

    def __init__(self, plan: Plan, progress: Callable[[float, Tally], None]) -> None:
        self.plan = plan
        self.selector = selectors.DefaultSelector()
        self.tally = Tally(seconds=max(0.0, plan.duration - plan.warm_up))
        # Resolved once: a DNS query for every connection would be part of the latency.
        found = socket.getaddrinfo(plan.host, plan.port, type=socket.SOCK_STREAM)[0]
        self.family, self.address = found[0], found[4]
        self._connection = _TimedConnection if plan.timings else _Connection
        self._progress = progress
        self._requests = cycle(plan.requests)
        self._random = random.Random(1)
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._waiting: deque[float] = deque()
        """The due times of requests that wait for a free connection."""
        self._retries: deque[float] = deque()
        """The times at which clients of the closed loop go on after a failed connection."""
        self._began = self._counted_from = self._ends = self._sweep_due = self._next_due = 0.0

    def run(self) -> Tally:
        cpu = time.process_time()
        self._began = now = time.monotonic()
        self._counted_from, self._ends = now + self.plan.warm_up, now + self.plan.duration
        self._sweep_due = now + _SWEEP
        self._next_due = now + self._gap()
        if self.plan.rate is None:
            self._retries.extend([now] * self.plan.clients)
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
        """Counts an answer. A connection that the server keeps open then sends the next request or becomes idle."""
        self._busy.discard(connection)
        good = 200 <= status < 300
        # Throughput counts answers by their arrival. Requests are in flight at both ends of the measured window; to
        # leave out those that were sent before it would lose one latency's worth of answers.
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
            self._send_next(connection, now)
        else:
            connection.close()
            self._send_next(None, now)

    def failed(self, connection: _Connection, reason: str) -> None:
        """Counts a request that gets no answer because its connection failed."""
        connection.close()
        if connection in self._idle:  # the server's keep-alive time ran out: no request is lost
            self._idle.remove(connection)
            return
        self._busy.discard(connection)
        if connection.due >= self._counted_from:
            self.tally.failures[reason] += 1
        if self.plan.rate is None:
            self._retries.append(time.monotonic() + _AFTER_FAILURE)

    def _select(self, now: float) -> list[tuple[selectors.SelectorKey, int]]:
        due = self._sweep_due
        if self.plan.rate is not None and now < self._ends:
            due = min(due, self._next_due)
            # epoll's timeout counts whole milliseconds, select's microseconds: so select waits, on the selector.
            select.select([self.selector], [], [], max(0.0, due - time.monotonic()))
            return self.selector.select(0)
        return self.selector.select(max(0.0, min([due, *self._retries]) - now))

    def _launch(self, now: float) -> None:
        while self.plan.rate is not None and self._next_due <= min(now, self._ends):
            self._dispatch(self._next_due)
            self._next_due += self._gap()
        while self._retries and self._retries[0] <= now:
            self._retries.popleft()
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
        elif len(self._busy) < MAX_CONNECTIONS:
            self._send(self._connection(self), due, now)
        else:
            self._waiting.append(due)

    def _send_next(self, connection: _Connection | None, now: float) -> None:
        """Sends the next request over ``connection``, or over a new one if the server has closed it (None)."""
        if self._waiting:
            self._send(connection or self._connection(self), self._waiting.popleft(), now)
        elif self.plan.rate is None and now < self._ends:
            self._send(connection or self._connection(self), now, now)
        elif connection is not None:
            self._idle.append(connection)

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
    """A connection that carries one request at a time. The constructor begins to connect and does not wait."""

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
        self._socket.connect_ex(run.address)  # the socket becomes writable when it is connected or has failed

    def send(self, request: bytes, due: float, now: float) -> None:
        """Sends ``request``. ``due`` is the time from which its latency counts."""
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
        """Notes the status of a complete answer; called by httptools. `_read` acts on it, outside the parser."""
        status = self._parser.get_status_code()
        if status >= 200:  # a 1xx status only announces the answer
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
    """A connection that reads the forward pass's time. A class of its own, since httptools' header hook costs CPU."""

    def on_header(self, name: bytes, value: bytes) -> None:
        """Reads the time from the header ``Server-Timing``; called by httptools for each header."""
        if name.lower() == b"server-timing":
            found = _INFERENCE.search(value)
            self.inference = float(found[1]) / 1000 if found else math.nan
