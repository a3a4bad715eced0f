"""Connections that wait: how many, for how long, and who has to go."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from service.frontend import connections
from service.frontend.connections import Connections, Waiting
from tests.api.wire import Place, Wire, on_the_services_loop, place
from tests.frontend.fed import Fed
from tests.loops import on_a_loop, until
from tests.uploads import png

PHOTO = png(1)
LIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


def known(here: Place) -> Connections:
    assert isinstance(here.connections, Connections)
    return here.connections


@on_the_services_loop
async def test_past_the_limit_the_longest_idle_go_and_who_is_served_stays() -> None:
    async with place() as here, contextlib.AsyncExitStack() as stack:
        here.engine.runner.may_run.clear()
        known(here).limit = 5

        async def connect() -> Wire:
            wire = await stack.enter_async_context(here.connect())
            await asyncio.sleep(0)
            return wire

        asking = await connect()
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(PHOTO)}\r\n\r\n"
        await asking.send(head.encode() + PHOTO)
        await until(lambda: not here.idle)
        rested = await connect()
        await rested.send(LIVE)
        assert (await rested.answer()).status == 200
        silent = [await connect() for _ in range(3)]
        await until(lambda: len(here.connections) == 5)
        newcomers = []
        for _ in range(3):
            newcomers.append(await connect())
            await until(lambda: len(here.connections) == 5)
        assert all([await wire.closed() for wire in silent])
        for wire in (*newcomers, rested):
            await wire.send(LIVE)
            assert (await wire.answer()).status == 200
        here.engine.runner.may_run.set()
        assert (await asking.answer()).status == 200


@on_the_services_loop
async def test_a_connection_that_rests_gives_up_what_a_request_needs_and_asks_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "_IDLE_SECONDS", 0.05)
    async with place() as here, here.connect() as wire:
        for _ in range(3):
            await wire.send(LIVE[:10])
            await until(lambda: all(isinstance(one, Waiting) for one in here.connections))
            await wire.send(LIVE[10:] + LIVE[:7])
            assert (await wire.answer()).status == 200
            await wire.send(LIVE[7:])
            assert (await wire.answer()).status == 200
            await until(lambda: all(isinstance(one, Waiting) for one in here.connections))
        assert len(here.connections) == 1
        assert here.context.intake.held == 0


@on_a_loop
async def test_half_heads_share_the_budget() -> None:
    fed = Fed()
    fed.connections.intake.limit = 1000
    head = b"GET /a HTTP/1.1\r\nX: " + b"y" * 900
    await fed.feed(head)
    assert fed.connections.intake.held == len(head)
    await fed.feed(b"y" * 200)
    assert fed.statuses == [503]
    assert fed.connections.intake.held == 0


@pytest.mark.parametrize(
    "said",
    [b"SSH-2.0-OpenSSH_9\r\n", b"\x16\x03\x01\x02", b"get / HTTP/1.1\r\n", b"GET / HTTP/3\r\n", b"GET /\r\n"],
)
@on_a_loop
async def test_what_begins_as_no_request_is_refused_at_once(said: bytes) -> None:
    fed = Fed()
    await fed.feed(said)
    await until(lambda: bool(fed.statuses))
    assert fed.statuses[0] in (400, 501, 505)
    assert fed.pipe.eof
