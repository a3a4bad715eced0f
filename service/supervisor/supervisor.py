"""The parent of everything: binds the port once, starts the engine and the front-ends, watches, drains, ends.

    supervisor ──channel──▶ engine 1…E      told: front-end N at this link · stop
        │      ◀──────────                  tells: phase · progress · ready (arena, card) · failed · distrusted · alive
        └──────channel──▶ front-end 1…F     told: status · engine (arena, link, card) · drain
               ◀──────────                  tells: alive (which engines it is joined to) · again

One thread, one ``select`` loop, no torch. Whatever dies is started again: a front-end always, an engine
(`service.supervisor.pool`) unless it said why it cannot start or dies again and again.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from service.frontend import credentials, descriptors, listener
from service.host.collector import resting
from service.host.leftovers import Claim
from service.observability import logs, metrics, tracing
from service.settings import Settings, strangers
from service.shared import transport
from service.shared.status import State, Status
from service.supervisor.child import Child, Closable, ProcessChild, ThreadChild
from service.supervisor.crash_loop import CrashLoopGuard
from service.supervisor.pool import orders
from service.supervisor.pool.host import Heard
from service.supervisor.pool.pool import Pool

log = logging.getLogger(__name__)

#: Short runs of a front-end in a row, and the seconds that make one long: one that cannot start dies in a moment.
_FRONT_END_CRASH_LOOP = 5, 5.0
#: Seconds of silence after which a child is taken for hung. Far above any pause that a loaded host causes.
_SILENCE = 30.0
#: Seconds after an introduction in which a front-end joins the engine, and how often it has to say that it has not.
_UNJOINED, _UNJOINED_BEATS = 5.0, 3
#: Signals that end the service after what was admitted. SIGHUP is what a closed terminal sends.
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: Seconds beyond its timeout that a front-end gets to close its connections, and the engine to end.
_LAST_GRACE = 2.0
_TICK = 0.5


class Supervisor:
    """Construct with settings, then `run`. ``processes`` False puts every part into a thread of this process."""

    def __init__(self, settings: Settings, *, processes: bool = transport.PROCESSES) -> None:
        self._settings = settings
        self.processes = processes
        self._selector = selectors.DefaultSelector()
        self._callbacks: dict[int, Callable[[], None]] = {}
        """By descriptor: what to do when it is readable."""
        self.status = Status()
        self._phase_began = time.monotonic()
        self.front_ends: list[Child] = []
        self._pool = Pool(settings, self)
        self._crash_loops: defaultdict[str, CrashLoopGuard] = defaultdict(
            lambda: CrashLoopGuard(*_FRONT_END_CRASH_LOOP)
        )
        self._exit_code: int | None = None
        self._lost = False
        """Whether requests were not answered as they should have been: the exit code is 1."""
        self._give_up_at: float | None = None
        self._wake: tuple[socket.socket, socket.socket] = transport.socket_pair()
        self._metrics: Path | None = None
        self._claim: Claim | None = None
        self._listener: socket.socket | None = None
        self._grpc_port: socket.socket | None = None
        """Holds the port that the front-ends share for gRPC."""

    def bind(self) -> str:
        """Takes the port, if it was not yet, and says at which URL the service is going to be.

        Raises `ConfigurationError` when the port cannot be had, or a file that a front-end wants is no good.
        """
        if self._listener is None:
            credentials.check(self._settings)
            uds = self._settings.uds
            self._listener = (
                listener.bind_unix(uds) if uds else listener.bind(self._settings.host, self._settings.port)
            )
            if self._settings.grpc_port is not None:
                self._grpc_port = listener.reserve(self._settings.host, self._settings.grpc_port)
                port = self._grpc_port.getsockname()[1]
                self._settings = self._settings.model_copy(update={"grpc_port": port})
        return listener.url(self._listener, "https" if self._settings.tls_certificate_file else "http")

    def run(self) -> int:
        """Serves until a signal or a failure ends it. Returns the exit code: 0 when all was answered.

        Raises `ConfigurationError` when the port cannot be had.
        """
        url = self.bind()
        logs.configure(self._settings, "supervisor")
        descriptors.raise_limit()
        if complaint := descriptors.complaint(self._settings.asked_connections):
            log.warning("%s", complaint)
        self._metrics = metrics.prepare(processes=self._settings.resolved_frontends + len(list(self._pool)))
        self._claim = Claim(self._metrics)
        self._catch_signals()
        try:
            log.info("listening on %s", url)
            if self._settings.grpc_port is not None:
                log.info("listening for gRPC on port %d", self._settings.grpc_port)
            for problem in filter(None, [tracing.obstacle(), *strangers(os.environ)]):
                log.warning("%s", problem)
            self._start_everything()
            while self._exit_code is None:
                self._step()
            return self._exit_code
        finally:
            self._end_everything()

    # Starting

    def _start_everything(self) -> None:
        # The engines first: they load while this process imports what front-ends are made of.
        self._pool.start()
        count = self._settings.resolved_frontends if self.processes else 1
        for index in range(count):
            self._start_front_end(f"frontend-{index + 1}")

    def _start_front_end(self, name: str) -> None:
        # FastAPI takes a quarter of a second: imported once, in the parent of all, and after the engine's start.
        # The same for what counts, which `metrics.prepare` wants to come before.
        with resting():
            import prometheus_client  # noqa: F401

            from service.frontend import process as frontend

        assert self._listener is not None
        # A fork has its own copy of the socket; a thread needs one, since each side closes its own.
        port = self._listener if self.processes else self._listener.dup()
        main = partial(frontend.main, self._settings, port, name, board=self._pool.board)
        child = self._spawn(name, main, [])
        self.front_ends.append(child)
        self.watch(child, self._front_end_spoke, self._front_end_ended)
        child.channel.send("status", status=self.status.to_json())
        self._pool.introduce(child)

    def spawn(self, name: str, main: Callable[[transport.Channel], None]) -> Child:
        """A part that does not hold the port."""
        assert self._listener is not None
        return self._spawn(name, main, [self._listener])

    def _spawn(
        self, name: str, main: Callable[[transport.Channel], None], not_for_it: list[Closable]
    ) -> Child:
        if not self.processes:
            return ThreadChild(name, main)
        return ProcessChild(name, main, [*not_for_it, *self._not_for_children()])

    def _not_for_children(self) -> list[Closable]:
        channels = [child.channel for child in self._children()]
        claims = [self._claim] if self._claim is not None else []
        return [*channels, *self._wake, self._selector, *claims, *self._pool.resources()]

    def _children(self) -> list[Child]:
        return [*self.front_ends, *self._pool.children()]

    def watch(
        self,
        child: Child,
        spoke: Heard,
        ended: Callable[[Child], None],
    ) -> None:
        """Calls ``spoke`` with what ``child`` says, and ``ended`` when it has ended."""
        self.listen_to(child.channel.fileno(), lambda: self._listen(child, spoke))
        self.listen_to(child.sentinel, lambda: self._end(child, spoke, ended))

    def _end(self, child: Child, spoke: Heard, ended: Callable[[Child], None]) -> None:
        if child.channel.fileno() in self._callbacks:
            self._listen(child, spoke)  # its last words
        ended(child)

    def listen_to(self, descriptor: int, callback: Callable[[], None]) -> None:
        """Calls ``callback`` when ``descriptor`` is readable."""
        self._callbacks[descriptor] = callback
        self._selector.register(descriptor, selectors.EVENT_READ)

    def stop_listening_to(self, descriptor: int) -> None:
        """Before it is closed."""
        if self._callbacks.pop(descriptor, None) is not None:
            self._selector.unregister(descriptor)

    def forget(self, child: Child) -> None:
        """A part has ended: it is not listened to any more."""
        self.stop_listening_to(child.sentinel)
        self.stop_listening_to(child.channel.fileno())
        child.channel.close()

    # The loop

    def _step(self) -> None:
        # Collected first: what one event closes must not be mistaken for what another opens under its number.
        due = [(key.fd, self._callbacks[key.fd]) for key, _ in self._selector.select(_TICK)]
        for descriptor, callback in due:
            if (
                self._callbacks.get(descriptor) is callback
            ):  # else an event before it has ended what it is for
                callback()
        logs.flush()
        now = time.monotonic()
        self._pool.tick(now)
        for child in self._children():
            if self.processes and now - child.heard_at > self._pool.patience(child, _SILENCE):
                self.kill(child, f"was silent for {now - child.heard_at:.0f} s and was killed")
                child.heard_at = now
        if self._give_up_at is not None and now >= self._give_up_at:
            log.error("not everything ended within drain_timeout_ms")
            self._exit_code = 1

    def kill(self, child: Child, sentence: str) -> None:
        """Ends a part at once. ``sentence`` says why, in the words that end "the engine …"."""
        log.error("%s %s", child.name, sentence)
        child.sentence = sentence
        child.kill()

    def _listen(self, child: Child, spoke: Heard) -> None:
        while child in self._children():
            try:
                received = child.channel.receive()
            except BlockingIOError:
                return
            if received is None:
                self.stop_listening_to(child.channel.fileno())
                return  # its sentinel says the rest
            child.heard_at = time.monotonic()
            spoke(child, *received)

    # Front-ends

    def _front_end_spoke(self, child: Child, message: dict[str, Any], descriptors: list[int]) -> None:
        if message["kind"] == "alive":
            self._check_joined(child, set(message["joined"]))
            self._pool.shadow.hear(message["shadow"])
        elif message["kind"] == "again":
            self._pool.introduce(child)
        elif message["kind"] == "left":
            self._pool.leaving.left(child, message["version"])
        elif message["kind"] == "order":
            orders.obey(self._pool, self._pool.changes, child, message)

    def _check_joined(self, child: Child, joined: set[int]) -> None:
        """A front-end that has not found to an engine never asks it: another does better."""
        child.joined = joined
        self._pool.changes.look_who_joined()
        if not self._pool.missing(joined):
            child.unjoined = 0
            return
        child.unjoined += 1
        late = time.monotonic() - child.introduced_at > _UNJOINED
        if self.processes and late and child.unjoined >= _UNJOINED_BEATS:
            self.kill(child, "was not joined to the engine and was killed")

    def _front_end_ended(self, child: Child) -> None:
        outcome = child.sentence or child.outcome()
        self.forget(child)
        self.front_ends.remove(child)
        if self.processes:
            metrics.forget(child.pid)
        self._pool.front_end_ended(child)
        if self.status.state != "draining":
            self._replace(child, outcome or "ended")
            return
        self._lost |= outcome is not None
        if not self.front_ends:
            self._pool.stop()

    def _replace(self, child: Child, outcome: str) -> None:
        guard = self._crash_loops[child.name]
        if guard.record(time.monotonic() - child.began_at):
            log.error("%s %s, %d times in a row; giving up", child.name, outcome, guard.short_runs)
            self._exit_code = 1
            return
        log.error("%s %s; another takes its place", child.name, outcome)
        self.status.frontend_restarts += 1
        self._start_front_end(child.name)
        self.tell()

    def tell(self) -> None:
        """Every front-end hears of the status."""
        for child in self.front_ends:
            child.channel.send("status", status=self.status.to_json())

    # The engines

    def enter(self, state: State, detail: str) -> None:
        """The service is in another state, unless it drains: from there only the end leads on."""
        if self.status.state == "draining":
            return
        now = time.monotonic()
        if state != self.status.state:
            passed = self.status.phases.get(self.status.state, 0.0) + now - self._phase_began
            if self.status.state in ("starting", "loading", "warming"):
                self.status.phases[self.status.state] = round(passed, 3)
            self._phase_began = now
        self.status.state, self.status.detail, self.status.progress = state, detail, None
        self.tell()

    def came_ready(self) -> None:
        """All models are served."""
        phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.status.phases.items())
        log.info("ready on %s (%s)", self.bind(), phases)

    @property
    def over(self) -> bool:
        """Whether the exit code is decided, so that nothing is started any more."""
        return self._exit_code is not None

    def give_up(self) -> None:
        """The service ends now, with exit code 1."""
        self._exit_code = 1

    def end_after_answers(self) -> None:
        """The same after whoever waits has been told."""
        self._lost = True
        self._drain(0.0)

    def engines_ended(self, lost: bool) -> None:
        """During a drain: an engine has gone. ``lost`` says that somebody may have waited for it."""
        self._lost |= lost
        if not self.front_ends and not self._pool.children():  # else these first say so to whoever waits
            self._exit_code = int(self._lost)

    # Ending

    def _catch_signals(self) -> None:
        reader, writer = self._wake
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in _ENDING:
            if signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup asked for that
            signal.signal(number, lambda *_: None)  # the wake-up descriptor carries the number into the loop
        self._callbacks[reader.fileno()] = self._signalled
        self._selector.register(reader.fileno(), selectors.EVENT_READ)

    def _signalled(self) -> None:
        for number in self._wake[0].recv(16):
            name = signal.Signals(number).name
            if self.status.state == "draining":
                log.warning("%s again: ending at once", name)
                self._exit_code = 1
            else:
                log.info("%s: draining", name)
                self._drain(self._settings.drain_delay_ms / 1000)

    def _drain(self, delay: float) -> None:
        timeout = self._settings.drain_timeout_ms / 1000
        self.enter("draining", "ending after what was admitted")
        self._pool.changes.cancel("the service ends")
        self._give_up_at = time.monotonic() + delay + timeout + _LAST_GRACE
        assert self._listener is not None
        self._listener.close()  # the front-ends have theirs; when they close it, clients are refused at once
        for child in self.front_ends:
            child.channel.send("drain", delay=delay)
        if not self.front_ends:
            self._pool.stop()

    def _end_everything(self) -> None:
        signal.set_wakeup_fd(-1)
        for child in self._children():
            child.kill()
        self._pool.close()
        self._selector.close()
        if self._listener is not None:
            self._listener.close()
            if self._grpc_port is not None:
                self._grpc_port.close()
            if self._settings.uds is not None:
                listener.remove_unanswered(self._settings.uds)
        if self._metrics is not None:
            metrics.clean_up(self._metrics)
        if self._claim is not None:
            self._claim.close()
