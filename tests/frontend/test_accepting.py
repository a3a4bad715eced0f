"""Connections of a shared listening socket: who takes them, and what becomes of them when something fails or ends."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
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
PATIENCE = 5.0


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

    def accept(self) -> tuple[socket.socket, Any]:
        self.asked += 1
        if self.fails:
            number, *rest = self.fails
            self.fails = tuple(rest)
            raise OSError(number, os.strerror(number))
        return super().accept()


@asynccontextmanager
async def port(*fails: int) -> AsyncIterator[Port]:
    """A listening socket; `accept` first fails with these numbers."""
    with listener.bind("127.0.0.1", 0) as bound, Port(fileno=bound.detach()) as made:
        made.fails = fails
        yield made


@asynccontextmanager
async def front_end(
    port: Port, share: Share | None = None, context: ssl.SSLContext | None = None
) -> AsyncIterator[Acceptor]:
    """Accepts from ``port``. Its connections end with the block."""
    known = Connections(1000, Intake(1 << 20))
    acceptor = Acceptor(port, known, share or Share.of_all(), context)
    acceptor.start()
    try:
        yield acceptor
    finally:
        # With warnings as errors, uvloop does not end while a transport is open.
        acceptor.close()
        await acceptor.settle()
        for one in list(known):
            one.transport.abort()
        await until(lambda: not len(known), PATIENCE)


@contextlib.contextmanager
def clients(port: socket.socket, number: int = 1) -> Iterator[list[socket.socket]]:
    """Clients whose connections the kernel has completed."""
    with contextlib.ExitStack() as stack:
        address = port.getsockname()
        yield [
            stack.enter_context(socket.create_connection(address, timeout=PATIENCE)) for _ in range(number)
        ]


def held(*acceptors: Acceptor) -> int:
    """The number of connections that are known."""
    return sum(len(one._connections) for one in acceptors)


async def turns(number: int) -> None:
    """Lets the loop look at its sockets so often."""
    for _ in range(number):
        await asyncio.sleep(0)


@pytest.mark.parametrize("at_once", [1, 120])
@on_both_loops
async def test_three_front_ends_share(at_once: int) -> None:
    """The first would take them all, one by one, since it is always woken first."""
    counts = ConnectionCounts(3)
    shares = [counts.share(place) for place in range(3)]
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(port())
        ports = [first]
        for _ in range(2):
            ports.append(stack.enter_context(first.dup()))
        acceptors = [
            await stack.enter_async_context(front_end(one, share))
            for one, share in zip(ports, shares, strict=True)
        ]
        for share in shares:
            share.note(0)
        for number in range(at_once, 121, at_once):
            stack.enter_context(clients(first, at_once))
            await until(partial(lambda number: held(*acceptors) == number, number), PATIENCE)
            for share, acceptor in zip(shares, acceptors, strict=True):
                share.note(acceptor.held)  # as each does ten times a second
        spread = [held(one) for one in acceptors]
        assert sum(spread) == 120
        assert min(spread) >= 25, spread


@on_both_loops
async def test_what_others_leave_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "_FOR_OTHERS", 0.001)
    counts = ConnectionCounts(2)

    async with port() as here, front_end(here, counts.share(0)) as acceptor:
        with contextlib.ExitStack() as stack:

            def taken(number: int) -> bool:
                counts.share(1).note(0)  # the other one lives, but takes nothing
                return held(acceptor) == number

            for number in range(1, 11):
                stack.enter_context(clients(here))
                await until(partial(taken, number), PATIENCE)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPERM])
@on_both_loops
async def test_what_the_system_lacks_is_awaited_without_a_spin(
    number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, accepting.__name__)
    monkeypatch.setattr(accepting, "_AFTER_ERROR", 3600)
    async with port(number, number, number) as here, front_end(here) as acceptor:
        with clients(here):
            await until(lambda: here.asked > 0, PATIENCE)
            await turns(50)
            assert here.asked == 1
            assert acceptor._pause is not None
            monkeypatch.setattr(accepting, "_AFTER_ERROR", 0.001)
            acceptor._pause.cancel()
            acceptor._go_on()
            await until(lambda: held(acceptor) == 1, PATIENCE)
    assert [record.levelname for record in caplog.records] == ["ERROR"]  # once, not each time


@on_both_loops
async def test_a_client_that_has_gone_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "_AFTER_ERROR", 3600)
    async with port(errno.ECONNABORTED, errno.ECONNABORTED) as here, front_end(here) as acceptor:
        with clients(here, 2):
            await until(lambda: held(acceptor) == 2, PATIENCE)
            assert here.asked >= 4


@pytest.mark.parametrize("all_of_them", [True, False])
@on_both_loops
async def test_the_end_takes_what_waits_in_the_kernel_if_nobody_else_would(all_of_them: bool) -> None:
    counts = ConnectionCounts(2)
    counts.share(1).note(0)
    async with port() as here, front_end(here, counts.share(0)) as acceptor:
        with clients(here, 50):
            if all_of_them:
                acceptor.take_all()
            acceptor.close()
            await acceptor.settle()
            assert held(acceptor) == (50 if all_of_them else 0)
            async with front_end(here) as other:  # it gets the rest
                await until(lambda: held(acceptor, other) == 50, PATIENCE)


@on_both_loops
async def test_a_connection_over_tls_and_one_that_speaks_none(tmp_path: Path) -> None:
    context = Certificate(*make(tmp_path, "here")).context
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    async with port() as here, front_end(here, context=context) as acceptor:
        with clients(here) as (wrong,):
            wrong.sendall(b"GET / HTTP/1.1\r\n\r\n")
            _, writer = await asyncio.open_connection(*here.getsockname(), ssl=trusting)
            try:
                await until(lambda: held(acceptor) == 1, PATIENCE)
                await until(lambda: not acceptor._arriving, PATIENCE)  # the wrong one has been given up
            finally:
                writer.transport.abort()
