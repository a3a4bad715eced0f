"""A front-end's life: HTTP and the decoders' door on one event loop, in front of the engines."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import multiprocessing
import os
import socket
import threading
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import uvicorn

from service.api.app import create_app
from service.api.body import ENVELOPE
from service.api.context import Context
from service.api.keys import Keys
from service.api.served import Models
from service.api.shadow import Shadow
from service.engine.decode_memory import DecodeMemory
from service.errors import Draining, EngineFailed
from service.frontend import credentials
from service.frontend.accepting import Acceptor
from service.frontend.connections import Connections
from service.frontend.descriptors import Reserve, connections
from service.frontend.engines import JoinedEngines
from service.frontend.listener import refuse_newcomers
from service.frontend.protocol import Protocol
from service.frontend.tls import Certificate
from service.images.decoders.cost import SMALL
from service.images.decoders.keeper import Keeper
from service.images.decoders.picture import Recipe
from service.images.decoders.pool import DecoderPool
from service.images.decoders.threads import Threads
from service.observability import logs
from service.observability.metrics import Metrics
from service.observability.tracing import Tracing
from service.settings import Settings, available_cores
from service.shared import transport
from service.shared.board import Board
from service.shared.connection_counts import Share
from service.shared.orders import Orders
from service.shared.status import Status
from service.shared.transport import Channel

if TYPE_CHECKING:
    from service.api.grpc.server import GrpcServer

log = logging.getLogger(__name__)

#: Seconds between two signs of life to the supervisor.
HEARTBEAT = 1.0
#: Seconds between refusing new connections and closing the port, in which those under way are accepted; in steps.
_ACCEPT_SECONDS, _ACCEPT_STEPS = 0.2, 4
#: Seconds for sending the last answers to requests that were cut off.
_LAST_WORDS = 0.5
#: Niceness of decoders beside a GPU that decodes, at a thirtieth of their CPU for a photo: they take what is left.
_AFTER_THE_GPU = 10
#: Seconds at the end of a drain (a tenth of a drain shorter than ten times this) in which nothing is decoded any more,
#: so that requests that wait for a decoder still get an answer.
_LAST_SECOND = 1.0


class FrontEndServer:
    """One front-end, made of the listening socket and the channel to the supervisor. `run` is its life."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        channel: Channel,
        keeper: Keeper | None = None,
        board: Board | None = None,
        share: Share | None = None,
    ) -> None:
        """Decodes in processes of the ``keeper``, or without one in threads. ``board`` holds the answering versions.

        Without a ``share`` of the connections it takes all.
        """
        self._settings = settings
        self._listener = listener
        self._channel = channel
        self._keys, self._certificate = credentials.check(settings)
        threads = -(-available_cores() // settings.resolved_frontends)
        metrics = Metrics.declare()
        self.failed = False
        """True if it ends because its decoders failed."""
        self._memory = DecodeMemory(SMALL.memory if keeper else 0)
        self._pool = (
            DecoderPool(
                keeper,
                threads,
                self._memory,
                killed=lambda kind, reason: metrics.decodes_killed.labels(kind, reason).inc(),
                lost=self._handle_lost_decoders,
            )
            if keeper is not None
            else None
        )
        self._decoders = self._pool or Threads(threads)
        self._context = Context(
            settings=settings,
            metrics=metrics,
            decoders=self._decoders,
            models=Models(board),
            tracing=Tracing.from_environment(),
            supervisor=_supervisor(),
            orders=Orders(channel),
        )
        self._server = _server(self._context, self._keys, self._certificate, share)
        self._grpc: GrpcServer | None = None
        self._grpc_ended: asyncio.Task[None] | None = None
        self._leaving: list[asyncio.Task[None]] = []
        self._reserve = Reserve()
        if settings.shadow is not None:
            self._context.shadow = Shadow(self._context.models, metrics, settings.shadow_share)
        self._engines = JoinedEngines(self._context, threads, self._memory, self._configure)

    async def run(self) -> int:
        """Serves until the supervisor orders a drain or dies. Returns the number of requests that were cut off."""
        # All present objects live to the end; frozen, the garbage collector does not search them again and again.
        gc.freeze()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._channel.fileno(), self._receive_messages)
        heart = asyncio.create_task(self._beat())
        if self._settings.grpc_port is not None:
            from service.api.grpc.server import GrpcServer  # an extra

            self._grpc = GrpcServer(self._context, self._keys, self._settings.grpc_port)
            await self._grpc.start()
        await self._server.serve(sockets=[self._listener])
        if self._grpc_ended is not None:
            await self._grpc_ended
        heart.cancel()
        # uvicorn has cancelled the requests whose time was up; each still has to send its client an error.
        cut_off = self._server.server_state.tasks
        lost = len(cut_off)
        if cut_off:
            await asyncio.wait(cut_off, timeout=_LAST_WORDS)
        loop.remove_reader(self._channel.fileno())
        # When its link closes, the engine reclaims the slots; therefore the decoders must have ended before.
        await self._decoders.close()
        await asyncio.sleep(0)
        self._engines.detach()
        if self._context.tracing is not None:
            self._context.tracing.close()
        self._channel.close()
        return lost

    async def _beat(self) -> None:
        while self._send_heartbeat():
            self._reserve.hold()
            logs.flush()
            if self._certificate is not None:
                self._certificate.refresh()
            if self._pool is not None:
                self._memory.record_busy(self._pool.busy_seconds)
            await asyncio.sleep(HEARTBEAT)

    def _send_heartbeat(self) -> bool:
        shadow = self._context.shadow
        seen = shadow.tally.take() if shadow is not None else ()
        return self._channel.send("alive", joined=self._engines.joined(), shadow=seen)

    async def _leave_engines(self, model: int, version: int) -> None:
        """Leaves the version's engines and reports it to the supervisor."""
        await self._engines.leave(model, version)
        self._channel.send("left", model=model, version=version)

    def _receive_messages(self) -> None:
        while True:
            self._reserve.release()
            try:
                received = self._channel.receive()
            except BlockingIOError:
                self._reserve.hold()
                return
            if received is None:
                log.error("the supervisor has gone")
                asyncio.get_running_loop().remove_reader(self._channel.fileno())
                self._end()
                return
            self._handle_message(*received)

    def _handle_message(self, message: dict[str, Any], descriptors: list[int]) -> None:
        match message["kind"]:
            case "status":
                self._context.update_status(Status.from_json(message["status"]))
            case "engine":
                self._engines.attach(message, *descriptors)
                self._send_heartbeat()
            case "forget":
                self._leaving = [one for one in self._leaving if not one.done()]
                self._leaving.append(
                    asyncio.create_task(self._leave_engines(message["model"], message["version"]))
                )
            case "done":
                assert self._context.orders is not None
                self._context.orders.receive_reply(message)
            case "truncated":
                log.error("no descriptors are left for what the supervisor sent: asking again")
                self._channel.send("again")
            case "drain":
                self._drain(message["delay"])

    def _configure(self, recipe: Recipe) -> None:
        if self._pool is not None:
            self._pool.configure(recipe, self._settings.max_upload_bytes + ENVELOPE)

    def _drain(self, delay: float) -> None:
        loop = asyncio.get_running_loop()
        self._engines.expect_no_other()
        loop.call_later(delay, self._end)
        if self._pool is not None:
            patience = self._settings.drain_timeout_ms / 1000
            error = partial(Draining, "the service ends before the image could be decoded (drain_timeout_ms)")
            loop.call_later(delay + patience - min(_LAST_SECOND, patience / 10), self._pool.give_up, error)

    def _handle_lost_decoders(self) -> None:
        """Ends this front-end, which cannot decode any more, so that the supervisor replaces it."""
        self.failed = True
        assert self._pool is not None
        self._pool.give_up(lambda: EngineFailed("the decoders have failed and are being restarted"))
        self._server.should_exit = True  # the port stays open: the other front-ends share it

    def _end(self) -> None:
        """Takes no new connection, finishes the open requests and lets `run` return."""
        self._ending = asyncio.create_task(self._close_port())

    async def _close_port(self) -> None:
        """Accepts the connections that are under way in the kernel, then lets uvicorn close and wait."""
        refuse_newcomers(self._listener)
        self._server.take_all()
        if self._grpc is not None:
            grace = self._settings.drain_timeout_ms / 1000
            self._grpc_ended = asyncio.create_task(self._grpc.stop(grace))
        for _ in range(_ACCEPT_STEPS):  # in steps: even a starved loop polls its sockets between two timers
            await asyncio.sleep(_ACCEPT_SECONDS / _ACCEPT_STEPS)
        self._server.should_exit = True


def _supervisor() -> int:
    """The pid of the supervisor: the parent's, or this process's own where every part is a thread."""
    return os.getpid() if multiprocessing.parent_process() is None else os.getppid()


class _Server(uvicorn.Server):
    """uvicorn's server with `Connections`, and without signal handlers, since the supervisor decides the end."""

    def __init__(self, config: uvicorn.Config, connections: Connections, share: Share | None = None) -> None:
        super().__init__(config)
        self.servers = []
        self._acceptors: list[Acceptor] = []
        self._share = share or Share.of_all()
        self._connections = connections
        connections.make = partial(Protocol, config=config, server_state=self.server_state, app_state={})
        self.server_state.connections = connections  # type: ignore[assignment]

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        for port in sockets or ():
            self._acceptors.append(Acceptor(port, self._connections, self._share, self.config.ssl))
            self._acceptors[-1].start()
        self.started = True

    def take_all(self) -> None:
        """Takes more than its share from now on, since the port is about to close."""
        for acceptor in self._acceptors:
            acceptor.take_all()

    async def on_tick(self, counter: int) -> bool:
        self._connections.sweep()
        self._share.note(len(self._connections))
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._share.leave()
        self._connections.ending = True
        for acceptor in self._acceptors:
            acceptor.close()
        for acceptor in self._acceptors:
            await acceptor.settle()
        await super().shutdown(sockets)


def _server(
    context: Context,
    keys: Keys | None,
    certificate: Certificate | None = None,
    share: Share | None = None,
) -> _Server:
    config = uvicorn.Config(
        create_app(context, keys),
        ws="none",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(context.settings.drain_timeout_ms / 1000)),
    )
    config.load()
    if certificate is not None:
        config.ssl = certificate.context
    limit = connections(context.settings.asked_connections)
    return _Server(config, Connections(limit, context.intake), share)


def main(
    settings: Settings,
    listener: socket.socket,
    name: str,
    channel: Channel,
    board: Board | None = None,
    share: Share | None = None,
) -> None:
    """Runs a front-end in a process or a thread of its own. Exits with code 1 if requests were lost.

    The ``board`` holds the version of each model that answers, ``share`` the front-end's share of the connections.
    """
    logs.configure(settings, name)
    # The keeper is forked before this process has a thread, a connection or a key. A thread of the supervisor's process
    # must not fork.
    alone = transport.PROCESSES and threading.current_thread() is threading.main_thread()
    keeper = Keeper(_AFTER_THE_GPU if settings.decode == "gpu" else 0) if alone else None
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        well = runner.run(_run(settings, listener, channel, keeper, board, share))
    if not well:
        raise SystemExit(1)


async def _run(
    settings: Settings,
    listener: socket.socket,
    channel: Channel,
    keeper: Keeper | None,
    board: Board | None,
    share: Share | None,
) -> bool:
    """Runs a front-end. True if no request was lost and it did not fail."""
    front_end = FrontEndServer(settings, listener, channel, keeper, board, share)
    lost = await front_end.run()
    if lost:
        log.error("%d requests were cut off: drain_timeout_ms was too short for them", lost)
    return not lost and not front_end.failed


def _loop_factory() -> Any:
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop
