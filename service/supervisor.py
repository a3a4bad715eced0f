"""The parent of everything: binds the port once, starts the engine and the front-ends, watches, drains, ends.

    supervisor ──channel──▶ engine          told: front-end N at this link · stop
        │      ◀──────────                  tells: phase · progress · ready (arena, card) · failed · distrusted · alive
        └──────channel──▶ front-end 1…F     told: status · engine (arena, link, card) · drain
               ◀──────────                  tells: alive (which engine it is joined to) · again

One thread, one ``select`` loop, no torch. Whatever dies is started again: a front-end always, the
engine unless it said why it cannot start or dies again and again.
"""

from __future__ import annotations

import logging
import math
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

from service import credentials, descriptors, listener, logs, metrics, tracing
from service.child import Child, Closable, ProcessChild, ThreadChild
from service.engine import process as engine
from service.engine import transport
from service.engine.arena import MOST_FRONTENDS
from service.leftovers import Claim
from service.restarts import Lives
from service.settings import Settings, strangers
from service.status import State, Status

log = logging.getLogger(__name__)

#: Lives in a row, and the seconds that make one long: an engine's counts from the moment when it is ready, so that
#: a model that hangs at its first request is found out as well; a front-end that cannot start dies within a moment.
_ENGINE_LIVES, _FRONT_END_LIVES = (5, 120.0), (5, 5.0)
#: Engines whose device may fail before any is ready: each leaves out one more way to run the model.
_MOST_GIVEN_UP = 3
#: Seconds of silence after which a child is taken for hung. Far above any pause that a loaded host causes.
_SILENCE = 30.0
#: Times the first start that an engine which was ready may be silent while it loads again, if that is longer.
_TIMES_FIRST = 5.0
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
        self._processes = processes
        self._selector = selectors.DefaultSelector()
        self._callbacks: dict[int, Callable[[], None]] = {}
        """By descriptor: what to do when it is readable."""
        self._status = Status()
        self._phase_began = time.monotonic()
        self._front_ends: list[Child] = []
        self._engine: Child | None = None
        self._serving: dict[str, Any] | None = None
        """Of the engine that takes work: its geometry and the descriptors of arena and card."""
        self._engine_lives = Lives(*_ENGINE_LIVES)
        self._front_end_lives: defaultdict[str, Lives] = defaultdict(lambda: Lives(*_FRONT_END_LIVES))
        self._ready_at: float | None = None
        """Of the engine that is there; None until it is ready."""
        self._numbers: dict[str, int] = {}
        """By name: what the engine knows each front-end by."""
        self._last_number = 0
        self._exit_code: int | None = None
        self._was_ready = False
        self._first_start = 0.0
        """Seconds from the first engine's start until it was ready."""
        self._distrust = ""
        """What the engine said of its device before it ended."""
        self._given_up: list[str] = []
        """The same of each engine that ended so before it was ready: the next one tries less."""
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
        self._metrics = metrics.prepare(processes=self._settings.resolved_frontends + 1)
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
        # The engine first: it loads while this process imports what front-ends are made of.
        self._start_engine()
        count = self._settings.resolved_frontends if self._processes else 1
        for index in range(count):
            self._start_front_end(f"frontend-{index + 1}")

    def _start_front_end(self, name: str) -> None:
        # FastAPI takes half a second: imported once, in the parent of all, and after the engine's start.
        from service import frontend

        assert self._listener is not None
        # A fork has its own copy of the socket; a thread needs one, since each side closes its own.
        port = self._listener if self._processes else self._listener.dup()
        child = self._spawn(name, partial(frontend.main, self._settings, port, name), [])
        self._front_ends.append(child)
        self._watch(child, self._front_end_spoke, self._front_end_ended)
        child.channel.send("status", status=self._status.to_json())
        if self._serving is not None:
            self._introduce(child)

    def _start_engine(self) -> None:
        assert self._listener is not None
        self._engine = self._spawn(
            "engine", partial(engine.main, self._settings, given_up=tuple(self._given_up)), [self._listener]
        )
        self._watch(self._engine, self._engine_spoke, self._engine_ended)

    def _spawn(
        self, name: str, main: Callable[[transport.Channel], None], not_for_it: list[Closable]
    ) -> Child:
        if not self._processes:
            return ThreadChild(name, main)
        return ProcessChild(name, main, [*not_for_it, *self._not_for_children()])

    def _not_for_children(self) -> list[Closable]:
        channels = [child.channel for child in self._children()]
        claims = [self._claim] if self._claim is not None else []
        return [*channels, *self._wake, self._selector, *claims]

    def _children(self) -> list[Child]:
        return [*self._front_ends, *([self._engine] if self._engine else [])]

    def _watch(
        self,
        child: Child,
        spoke: Callable[[Child, dict[str, Any], list[int]], None],
        ended: Callable[[Child], None],
    ) -> None:
        self._callbacks[child.channel.fileno()] = lambda: self._listen(child, spoke)
        self._callbacks[child.sentinel] = lambda: ended(child)
        self._selector.register(child.channel.fileno(), selectors.EVENT_READ)
        self._selector.register(child.sentinel, selectors.EVENT_READ)

    def _ignore(self, descriptor: int) -> None:
        if self._callbacks.pop(descriptor, None) is not None:
            self._selector.unregister(descriptor)

    def _forget(self, child: Child) -> None:
        self._ignore(child.sentinel)
        self._ignore(child.channel.fileno())
        child.channel.close()

    # The loop

    def _step(self) -> None:
        # Collected first: what one event closes must not be mistaken for what another opens under its number.
        due = [self._callbacks[key.fd] for key, _ in self._selector.select(_TICK)]
        for callback in due:
            callback()
        logs.flush()
        now = time.monotonic()
        for child in self._children():
            if self._processes and now - child.heard_at > self._patience(child):
                self._kill(child, f"was silent for {now - child.heard_at:.0f} s and was killed")
                child.heard_at = now
        if self._give_up_at is not None and now >= self._give_up_at:
            log.error("not everything ended within drain_timeout_ms")
            self._exit_code = 1

    def _patience(self, child: Child) -> float:
        """Seconds of silence. An engine that loads is busy in one call; how long the first takes, nobody knows."""
        if child is not self._engine or self._serving is not None:
            return _SILENCE
        return max(_SILENCE, _TIMES_FIRST * self._first_start) if self._was_ready else math.inf

    def _kill(self, child: Child, sentence: str) -> None:
        log.error("%s %s", child.name, sentence)
        child.sentence = sentence
        child.kill()

    def _listen(self, child: Child, spoke: Callable[[Child, dict[str, Any], list[int]], None]) -> None:
        while child in self._children():
            try:
                received = child.channel.receive()
            except BlockingIOError:
                return
            if received is None:
                self._ignore(child.channel.fileno())
                return  # its sentinel says the rest
            child.heard_at = time.monotonic()
            spoke(child, *received)

    # Front-ends

    def _front_end_spoke(self, child: Child, message: dict[str, Any], descriptors: list[int]) -> None:
        if message["kind"] == "again" and self._serving is not None:
            self._introduce(child)
        elif message["kind"] == "alive":
            self._check_joined(child, message["joined"])

    def _check_joined(self, child: Child, number: int) -> None:
        """A front-end that has not found to the engine answers 503 for ever: another does better."""
        if self._serving is None or number == self._numbers.get(child.name):
            child.unjoined = 0
            return
        child.unjoined += 1
        late = time.monotonic() - child.introduced_at > _UNJOINED
        if self._processes and late and child.unjoined >= _UNJOINED_BEATS:
            self._kill(child, "was not joined to the engine and was killed")

    def _front_end_ended(self, child: Child) -> None:
        outcome = child.sentence or child.outcome()
        self._forget(child)
        self._front_ends.remove(child)
        if self._processes:
            metrics.forget(child.pid)
        if self._status.state != "draining":
            self._replace(child, outcome or "ended")
            return
        self._lost |= outcome is not None
        if not self._front_ends:
            self._stop_engine()

    def _replace(self, child: Child, outcome: str) -> None:
        lives = self._front_end_lives[child.name]
        if lives.ended(time.monotonic() - child.began_at):
            log.error("%s %s, %d times in a row; giving up", child.name, outcome, lives.short)
            self._exit_code = 1
            return
        log.error("%s %s; another takes its place", child.name, outcome)
        self._status.frontend_restarts += 1
        self._start_front_end(child.name)
        self._tell()

    def _introduce(self, child: Child) -> None:
        """Joins a front-end and the engine by a new link."""
        assert self._engine is not None
        assert self._serving is not None
        number = self._numbers[child.name] = self._free_number(child.name)
        child.introduced_at, child.unjoined = time.monotonic(), 0
        ours, theirs = transport.socket_pair()
        self._engine.channel.send("front-end", number=number, descriptors=[ours.fileno()])
        child.channel.send(
            "engine",
            number=number,
            geometry=self._serving["geometry"],
            descriptors=[self._serving["arena"], theirs.fileno(), self._serving["card"]],
        )
        ours.close()
        theirs.close()

    def _free_number(self, name: str) -> int:
        """The next one, so that the engine is done with whoever had it; but none that another front-end lives under."""
        taken = {number for other, number in self._numbers.items() if other != name}
        while True:
            self._last_number = self._last_number % MOST_FRONTENDS + 1
            if self._last_number not in taken:
                return self._last_number

    def _tell(self) -> None:
        for child in self._front_ends:
            child.channel.send("status", status=self._status.to_json())

    # The engine

    def _engine_spoke(self, child: Child, message: dict[str, Any], descriptors: list[int]) -> None:
        match message["kind"]:
            case "phase":
                self._enter(message["state"], message["detail"])
                log.info("%s: %s", message["state"], message["detail"])
            case "progress":
                self._status.progress = {"done": message["done"], "total": message["total"]}
                self._tell()
            case "ready":
                arena, card = descriptors
                self._serving = {"geometry": message["geometry"], "arena": arena, "card": card}
                for front_end in self._front_ends:
                    self._introduce(front_end)
                self._enter("ready", "")
                if not self._was_ready:
                    self._was_ready, self._first_start = True, time.monotonic() - child.began_at
                self._ready_at = time.monotonic()
                phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self._status.phases.items())
                log.info("ready on %s (%s)", self.bind(), phases)
            case "distrusted":
                # Not ready from now on; the engine ends by itself, and `_engine_ended` starts another.
                self._distrust = message["message"]
                if self._ready_at is None:
                    self._given_up.append(self._distrust)
                self._enter("failed", self._distrust)
            case "hung":
                sentence = f"was killed: a batch had been running for {message['seconds']:.0f} s"
                self._enter("failed", f"the engine {sentence}")
                self._kill(child, sentence)
                if not self._processes:
                    log.error("a thread that hangs cannot be replaced; giving up")
                    self._exit_code = 1
            case "failed":
                log.error("%s", message["message"])
                self._enter("failed", message["message"])
                self._exit_code = 1

    def _enter(self, state: State, detail: str) -> None:
        """The service is in another state, unless it drains: from there only the end leads on."""
        if self._status.state == "draining":
            return
        now = time.monotonic()
        if state != self._status.state:
            passed = self._status.phases.get(self._status.state, 0.0) + now - self._phase_began
            if self._status.state in ("starting", "loading", "warming"):
                self._status.phases[self._status.state] = round(passed, 3)
            self._phase_began = now
        self._status.state, self._status.detail, self._status.progress = state, detail, None
        self._tell()

    def _engine_ended(self, child: Child) -> None:
        outcome = child.sentence or child.outcome()
        self._forget(child)
        self._engine = None
        self._drop_serving()
        if self._processes:
            metrics.forget(child.pid)
        if self._status.state == "draining":
            self._lost |= bool(self._front_ends)
            if not self._front_ends:  # else these first say so to whoever waits
                self._exit_code = int(self._lost)
        elif self._exit_code is None:
            reason, self._distrust = f" ({self._distrust})" if self._distrust else "", ""
            self._restart_engine((outcome or "ended") + reason)

    def _restart_engine(self, outcome: str) -> None:
        tries_less = 0 < len(self._given_up) <= _MOST_GIVEN_UP and self._ready_at is None
        if not self._was_ready and not tries_less:
            log.error("the engine %s before it was ever ready; giving up", outcome)
            self._exit_code = 1
            return
        lived = time.monotonic() - self._ready_at if self._ready_at is not None else 0.0
        if self._engine_lives.ended(lived):
            log.error("the engine %s, as %d before it did young; giving up", outcome, _ENGINE_LIVES[0] - 1)
            self._lost = True
            self._drain(0.0)  # whoever waits hears of it before all ends
            return
        self._status.restarts += 1
        log.error("the engine %s and is started again", outcome)
        self._enter("failed", f"the engine {outcome} and is started again")
        self._status.phases.clear()
        self._ready_at = None
        self._numbers.clear()
        self._start_engine()

    def _stop_engine(self) -> None:
        if self._engine is None:
            self._exit_code = int(self._lost)
        elif self._serving is not None:
            self._engine.channel.send("stop")
        else:  # in the middle of loading: nothing depends on it
            self._engine.kill()

    def _drop_serving(self) -> None:
        if self._serving is not None:
            os.close(self._serving["arena"])
            os.close(self._serving["card"])
            self._serving = None

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
            if self._status.state == "draining":
                log.warning("%s again: ending at once", name)
                self._exit_code = 1
            else:
                log.info("%s: draining", name)
                self._drain(self._settings.drain_delay_ms / 1000)

    def _drain(self, delay: float) -> None:
        timeout = self._settings.drain_timeout_ms / 1000
        self._enter("draining", "ending after what was admitted")
        self._give_up_at = time.monotonic() + delay + timeout + _LAST_GRACE
        assert self._listener is not None
        self._listener.close()  # the front-ends have theirs; when they close it, clients are refused at once
        for child in self._front_ends:
            child.channel.send("drain", delay=delay)
        if not self._front_ends:
            self._stop_engine()

    def _end_everything(self) -> None:
        signal.set_wakeup_fd(-1)
        for child in self._children():
            child.kill()
        self._drop_serving()
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
