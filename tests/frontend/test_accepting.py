"""Connections of a shared listening socket: who takes them, and what becomes of them when something fails or ends."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import partial, wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Any, cast

import pytest

from service.api.intake import Intake
from service.frontend import accepting, listener, process
from service.frontend.accepting import Acceptor
from service.frontend.connections import Connections
from service.frontend.tls import Certificate
from service.shared.connection_counts import ConnectionCounts, Share
from tests.frontend.test_tls import make
from tests.loops import until

#: Seconds: far above what anything here takes.
PATIENCE = 30.0


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Runs a coroutine function as a test on the loop of front-ends and on asyncio's own."""

    @pytest.mark.parametrize("new_loop", [process._loop_factory(), asyncio.new_event_loop])
    @wraps(test)
    def run(new_loop: Callable[[], asyncio.AbstractEventLoop], **keywords: Any) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(test(**keywords))  # type: ignore[arg-type]

    parameters = [
        *signature(test).parameters.values(),
        Parameter("new_loop", Parameter.POSITIONAL_OR_KEYWORD),
    ]
    cast(Any, run).__signature__ = Signature(parameters)  # what pytest reads
    return run


class Port(socket.socket):
    """A listening socket whose `accept` fails as a test wants, and counts."""

    fails: tuple[int, ...] = ()
    asked = 0

    @classmethod
    def bound(cls, *fails: int) -> Port:
        with listener.bind("127.0.0.1", 0) as bound:
            port = cls(fileno=bound.detach())
        port.fails = fails
        return port

    def accept(self) -> tuple[socket.socket, Any]:
        self.asked += 1
        if self.fails:
            number, *rest = self.fails
            self.fails = tuple(rest)
            raise OSError(number, os.strerror(number))
        return super().accept()


def connections() -> Connections:
    return Connections(1000, Intake(1 << 20))


def connect(port: socket.socket, clients: int = 1) -> list[socket.socket]:
    """Clients whose connections the kernel has completed."""
    return [socket.create_connection(port.getsockname(), timeout=PATIENCE) for _ in range(clients)]


def hang_up(*clients: socket.socket) -> None:
    for client in clients:
        client.close()


def all_taken(acceptors: list[Acceptor], clients: int) -> bool:
    return sum(len(one._connections) for one in acceptors) == clients


async def turns(number: int) -> None:
    """Lets the loop look at its sockets so often."""
    for _ in range(number):
        await asyncio.sleep(0)


async def end(acceptor: Acceptor, *, keep: bool = False) -> None:
    acceptor.close()
    await acceptor.settle()
    for one in list(acceptor._connections):
        one.transport.abort()
    if not keep:
        acceptor._listener.close()
    await turns(3)


@pytest.mark.parametrize("at_once", [1, 120])
@on_both_loops
async def test_three_front_ends_share(at_once: int) -> None:
    """The first would take them all, one by one, since it is always woken first."""
    counts = ConnectionCounts(3)
    port = Port.bound()
    acceptors = [Acceptor(port.dup(), connections(), counts.share(place)) for place in range(3)]
    for place, acceptor in enumerate(acceptors):
        counts.share(place).note(0)
        acceptor.start()
    clients: list[socket.socket] = []
    while len(clients) < 120:
        clients += connect(port, at_once)
        await until(partial(all_taken, acceptors, len(clients)), PATIENCE)
        for place, acceptor in enumerate(acceptors):
            counts.share(place).note(acceptor.held)  # as each does ten times a second
    held = [len(one._connections) for one in acceptors]
    assert min(held) >= 25, held
    hang_up(*clients)
    for acceptor in acceptors:
        await end(acceptor)
    port.close()


@on_both_loops
async def test_what_others_leave_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "_FOR_OTHERS", 0.001)
    counts = ConnectionCounts(2)
    port = Port.bound()
    acceptor = Acceptor(port, connections(), counts.share(0))
    acceptor.start()
    clients: list[socket.socket] = []
    for number in range(1, 11):
        counts.share(1).note(0)  # the other one lives, but takes nothing
        clients += connect(port)
        await until(partial(all_taken, [acceptor], number), PATIENCE)
    hang_up(*clients)
    await end(acceptor)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPERM])
@on_both_loops
async def test_what_the_system_lacks_is_awaited_without_a_spin(
    number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, accepting.__name__)
    monkeypatch.setattr(accepting, "_AFTER_ERROR", 3600)
    port = Port.bound(number, number, number)
    acceptor = Acceptor(port, connections(), Share.of_all())
    acceptor.start()
    clients = connect(port)
    await until(lambda: port.asked > 0, PATIENCE)
    await turns(50)
    assert port.asked == 1
    monkeypatch.setattr(accepting, "_AFTER_ERROR", 0.001)
    assert acceptor._pause is not None
    acceptor._pause.cancel()
    acceptor._go_on()
    await until(lambda: len(acceptor._connections) == 1, PATIENCE)
    assert [record.levelname for record in caplog.records] == ["ERROR"]  # once, not each time
    hang_up(*clients)
    await end(acceptor)


@on_both_loops
async def test_a_client_that_has_gone_holds_nobody_up() -> None:
    port = Port.bound(errno.ECONNABORTED, errno.ECONNABORTED)
    acceptor = Acceptor(port, connections(), Share.of_all())
    acceptor.start()
    clients = connect(port, 2)
    await until(lambda: len(acceptor._connections) == 2, PATIENCE)
    assert acceptor._pause is None
    hang_up(*clients)
    await end(acceptor)


@pytest.mark.parametrize("all_of_them", [True, False])
@on_both_loops
async def test_the_end_takes_what_waits_in_the_kernel_if_nobody_else_would(all_of_them: bool) -> None:
    counts = ConnectionCounts(2)
    counts.share(1).note(0)
    port = Port.bound()
    acceptor = Acceptor(port, connections(), counts.share(0))
    acceptor.start()
    clients = connect(port, 50)
    if all_of_them:
        acceptor.take_all()
    acceptor._connections.ending = True
    acceptor.close()
    await acceptor.settle()
    assert len(acceptor._connections) == (50 if all_of_them else 0)
    if not all_of_them:  # another front-end does
        other = Acceptor(port, connections(), Share.of_all())
        other.start()
        await until(lambda: len(other._connections) == 50, PATIENCE)
        await end(other, keep=True)
    hang_up(*clients)
    await end(acceptor)


@on_both_loops
async def test_a_connection_over_tls_and_one_that_speaks_none(tmp_path: Path) -> None:
    files = make(tmp_path, "here")
    port = Port.bound()
    acceptor = Acceptor(port, connections(), Share.of_all(), Certificate(*files).context)
    acceptor.start()
    (wrong,) = connect(port)
    wrong.sendall(b"GET / HTTP/1.1\r\n\r\n")
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection(*port.getsockname(), ssl=client)
    await until(lambda: len(acceptor._connections) == 1, PATIENCE)
    await until(lambda: not acceptor._arriving, PATIENCE)  # the wrong one has been given up
    writer.transport.abort()
    hang_up(wrong)
    await end(acceptor)
