"""The parent of all processes: binds the port, starts engines and front-ends, watches, drains, ends.

    supervisor ──channel──▶ engine 1…E      told: front-end N at this link · stop
        │      ◀──────────                  tells: phase · progress · ready (arena, card) · failed · distrusted · alive
        └──────channel──▶ front-end 1…F     told: status · engine (arena, link, card) · drain
               ◀──────────                  tells: alive (which engines it is joined to) · again

It has one thread, one ``select`` loop and no torch. It decides nothing: signals, ends and messages are events of
`service.supervisor.lifecycle`, which returns the actions that follow.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Concatenate, ParamSpec

from service.frontend import descriptors, listener
from service.host.collector import resting
from service.host.leftovers import Claim
from service.observability import logs, metrics, tracing
from service.settings import Settings, strangers
from service.shared import transport
from service.shared.board import Board
from service.shared.connection_counts import ConnectionCounts
from service.supervisor.child import Child, Closable, Main, ProcessChild, ThreadChild
from service.supervisor.lifecycle import actions
from service.supervisor.lifecycle.actions import Action
from service.supervisor.lifecycle.lifecycle import Lifecycle
from service.supervisor.lifecycle.parts import FrontEnd
from service.supervisor.loop import Loop
from service.supervisor.pool.pool import EnginePool, models_to_serve
from service.supervisor.ports import Ports

log = logging.getLogger(__name__)

#: Signals that drain and end the service. A closed terminal sends SIGHUP.
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: Seconds between two ticks of the lifecycle at most.
_TICK = 0.5

P = ParamSpec("P")


class Supervisor:
    """The service with these settings; `run` is its life. Without ``processes`` its parts are threads."""

    def __init__(self, settings: Settings, *, processes: bool = transport.PROCESSES) -> None:
        self._settings = settings
        self._processes = processes
        self._lifecycle = Lifecycle(settings, models_to_serve(settings), processes=processes)
        self._to_do: deque[Action] = deque()
        self._children: dict[int, Child] = {}
        """The running parts by number."""
        self._ports = Ports()
        self._loop = Loop()
        self._board = Board()
        self._counts = ConnectionCounts(settings.resolved_frontends)
        self._places: dict[str, int] = {}
        """The places among the ``_counts`` by the front-end's name, which passes on to its successor."""
        self._pool = EnginePool(settings, self._lifecycle, self._children, self._loop, self._handle_event)
        self._claim: Claim | None = None

    def bind(self) -> str:
        """Binds the ports unless they are bound, and returns the URL of the service.

        Raises `ConfigurationError` if a port cannot be bound, or a file with keys or a certificate cannot be used.
        """
        self._settings = self._ports.bind(self._settings)
        assert self._ports.http is not None
        return listener.url(self._ports.http, "https" if self._settings.tls_certificate_file else "http")

    def run(self) -> int:
        """Serves until a signal or a failure. Returns the exit code: 0 if all requests were answered.

        Raises `ConfigurationError` as `bind` does.
        """
        url = self.bind()
        logs.configure(self._settings, "supervisor")
        descriptors.raise_limit()
        if complaint := descriptors.complaint(self._settings.asked_connections):
            log.warning("%s", complaint)
        engines = len(list(self._lifecycle.state.seats))
        folder = metrics.prepare(processes=self._settings.resolved_frontends + engines)
        self._claim = Claim(folder)
        self._loop.catch_signals(_ENDING, lambda name: self._handle_event(self._lifecycle.signalled, name))
        try:
            self._log_start(url)
            count = self._settings.resolved_frontends if self._processes else 1
            self._handle_event(self._lifecycle.started, url, count)
            while (exit_code := self._lifecycle.state.exit_code) is None:
                self._step()
            return exit_code
        finally:
            self._end_everything(folder)

    def _log_start(self, url: str) -> None:
        log.info("listening on %s", url)
        if self._settings.grpc_port is not None:
            log.info("listening for gRPC on port %d", self._settings.grpc_port)
        for problem in filter(None, [tracing.obstacle(), *strangers(os.environ)]):
            log.warning("%s", problem)

    def _step(self) -> None:
        self._loop.step(_TICK)
        logs.flush()
        self._pool.tick()
        self._handle_event(self._lifecycle.tick)

    def _end_everything(self, folder: Path) -> None:
        for child in self._children.values():
            child.kill()
        self._pool.close()
        self._loop.close()
        self._ports.close()
        metrics.clean_up(folder)
        if self._claim is not None:
            self._claim.close()

    # Events and what follows from them

    def _handle_event(
        self,
        event: Callable[Concatenate[float, P], list[Action]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """Passes an event to the lifecycle and carries out its actions. Actions of nested events come after them."""
        busy = bool(self._to_do)
        self._to_do += event(time.monotonic(), *args, **kwargs)
        while self._to_do and not busy:
            self._perform(self._to_do[0])
            self._to_do.popleft()

    def _perform(self, action: Action) -> None:
        match action:
            case actions.StartFrontEnd(front_end):
                self._start_front_end(front_end)
            case actions.StartEngine():
                assert self._ports.http is not None
                self._start(action.engine, action.seat.name, self._pool.main_of(action), [self._ports.http])
            case actions.Send(part, kind, fields):
                self._children[part].channel.send(kind, **fields)
            case actions.Kill(part):
                self._children[part].kill()
            case actions.Show(place, version):
                self._board.show(place, version)
            case actions.ClosePort():
                assert self._ports.http is not None
                self._ports.http.close()
            case actions.Log(level, line):
                log.log(level, "%s", line)
            case _:
                self._pool.perform(action)

    # Parts

    def _start_front_end(self, front_end: FrontEnd) -> None:
        # FastAPI's import takes a quarter of a second. It is imported once, in the parent, after the engine's start.
        # prometheus_client must be imported after `metrics.prepare`.
        with resting():
            import prometheus_client  # noqa: F401

            from service.frontend import process

        assert self._ports.http is not None
        # A forked process has its own copy of the socket; a thread needs one, since both sides close theirs.
        port = self._ports.http if self._processes else self._ports.http.dup()
        share = self._counts.share(self._places.setdefault(front_end.name, len(self._places)))
        main = partial(process.main, self._settings, port, front_end.name, board=self._board, share=share)
        self._start(front_end.number, front_end.name, main, [])

    def _start(self, number: int, name: str, main: Main, not_for_it: list[Closable]) -> None:
        """Starts a part, and listens for its messages and its end."""
        child: Child
        if self._processes:
            child = ProcessChild(name, main, [*not_for_it, *self._not_for_children()])
        else:
            child = ThreadChild(name, main)
        self._children[number] = child
        self._loop.add_reader(child.channel.fileno(), partial(self._receive, number, child))
        self._loop.add_reader(child.sentinel, partial(self._ended, number, child))

    def _not_for_children(self) -> list[Closable]:
        channels = [child.channel for child in self._children.values()]
        claims = [self._claim] if self._claim is not None else []
        return [*channels, *self._loop.resources(), *claims, *self._pool.resources()]

    def _receive(self, number: int, child: Child) -> None:
        while True:
            try:
                received = child.channel.receive()
            except BlockingIOError:
                return
            if received is None:
                self._loop.remove_reader(child.channel.fileno())
                return  # its sentinel reports its end
            message, descriptors = received
            if message["kind"] == "ready":
                self._pool.ready(number, message, *descriptors)
            else:
                self._handle_event(self._lifecycle.message_received, number, message)

    def _ended(self, number: int, child: Child) -> None:
        if self._loop.has_reader(child.channel.fileno()):
            self._receive(number, child)  # its last messages
        outcome = child.outcome()
        self._loop.remove_reader(child.sentinel)
        self._loop.remove_reader(child.channel.fileno())
        child.channel.close()
        del self._children[number]
        self._pool.forget(number)
        if self._processes:
            metrics.forget(child.pid)
        self._handle_event(self._lifecycle.ended, number, outcome)
