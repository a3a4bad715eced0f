"""Several batches on the device at once, a device that fails, and what the engine tells of both."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from service.engine.arena import Arena, Gauge, Geometry
from service.engine.batcher import Batcher
from service.engine.core import EngineCore
from service.errors import EngineFailed, InternalError
from service.shared.batches import DeviceFailed, Memory
from service.shared.outputs import Explain, OutputKind
from service.shared.transport import Link, socket_pair
from tests.engine.harness import IMAGE, Engine
from tests.engine.test_client_and_core import LATER, ask, picture
from tests.fakes import FAKE_MAP, FakeRunner, fingerprint
from tests.loops import on_a_loop, until


@on_a_loop
async def test_two_batches_are_on_the_device_and_the_third_waits() -> None:
    with Engine("thread", slots=16, in_flight=2, max_batch_size=2) as engine:
        client = engine.connect()
        engine.runner.may_run.clear()
        answers = [asyncio.create_task(ask(client, picture(seed))) for seed in range(8)]
        await until(lambda: engine.runner.running == 2)
        await asyncio.sleep(0.05)
        assert len(engine.runner.batches) == 2
        engine.runner.may_run.set()
        for seed, answer in enumerate(await asyncio.gather(*answers)):
            assert (answer.result == fingerprint(picture(seed), 10)).all()
        assert engine.arena.free == 16


@pytest.mark.parametrize("in_flight", [1, 2, 3])
@on_a_loop
async def test_everyone_gets_their_own_answer_whatever_overlaps(in_flight: int) -> None:
    with Engine("thread", slots=32, in_flight=in_flight, delay=0.001, max_batch_size=3) as engine:
        clients = [engine.connect() for _ in range(2)]

        async def one(seed: int) -> None:
            for number in range(8):
                image = picture(100 * seed + number)
                answer = await ask(clients[seed % 2], image)
                assert (answer.result == fingerprint(image, 10)).all()

        await asyncio.gather(*(one(seed) for seed in range(16)))
        assert engine.arena.free == 32
        assert engine.arena.gauges[Gauge.BUSY_SINCE] == 0


@on_a_loop
async def test_the_device_goes_on_while_a_map_is_made() -> None:
    made = threading.Event()
    with Engine("thread", slots=16, in_flight=2, max_batch_size=1, maps_wait_for=made) as engine:
        client = engine.connect()

        async def look(seed: int) -> Any:
            with client.acquire() as slot:
                slot.pixels[...] = picture(seed)
                return (await slot.answer(client.clock() + LATER, 10 + FAKE_MAP, Explain(3))).result

        looking = asyncio.create_task(look(1))
        await until(lambda: engine.runner.batches != [] and engine.runner.running == 0)
        for seed in range(2, 6):
            answer = await ask(client, picture(seed))
            assert (answer.result == fingerprint(picture(seed), 10)).all()
        assert not looking.done()
        assert engine.arena.free == 15
        made.set()
        grid = await looking
        assert (grid[:10] == fingerprint(picture(1), 10)).all()
        assert (grid[10:] == 3 - np.arange(FAKE_MAP)).all()
        engine.runner.error = ValueError("this map cannot be made")
        with pytest.raises(InternalError):
            await look(7)
        engine.runner.error = None
        await ask(client, picture(8))
        assert engine.arena.free == 16


@on_a_loop
async def test_the_slots_of_a_dead_front_end_come_back_after_every_batch_that_has_them() -> None:
    with Engine("thread", slots=8, in_flight=2, max_batch_size=2) as engine:
        client, other = engine.connect(), engine.connect()
        engine.runner.may_run.clear()
        lost = [asyncio.create_task(ask(client, picture(seed))) for seed in range(4)]
        await until(lambda: engine.runner.running == 2)
        client.detach()
        for task in lost:
            with pytest.raises(EngineFailed):
                await task
        engine.runner.may_run.set()
        await ask(other, picture(9))
        await until(lambda: engine.arena.free == 8)


def serve(**runner: Any) -> tuple[EngineCore, FakeRunner, Arena]:
    fake = FakeRunner(**runner)
    arena = Arena.create(Geometry(4, *IMAGE, results=10))
    return EngineCore(fake, arena, Batcher(fake.max_batch_size), capacity=1.0), fake, arena


def test_an_idle_device_that_has_failed_ends_the_engine() -> None:
    core, fake, _ = serve()
    fake.broken = "CUDA error: an illegal memory access was encountered"
    with pytest.raises(DeviceFailed, match="illegal memory access"):
        core.serve()


@pytest.mark.parametrize(
    ("trouble", "answered"),
    [({"error": DeviceFailed("it is ill")}, False), ({"distrust": "it is ill", "mismatches": 1}, True)],
)
def test_a_device_that_fails_under_a_batch_ends_the_engine(trouble: dict[str, Any], answered: bool) -> None:
    core, _, arena = serve(**trouble)
    ours, theirs = socket_pair()
    core.attach(1, Link(theirs))
    slot = arena.acquire(1)
    assert slot is not None
    arena.record_submission(slot, 1e12, 0.0, OutputKind.CLASSIFY)
    link = Link(ours)
    link.send([slot])
    with pytest.raises(DeviceFailed, match="it is ill"):
        core.serve()
    assert list(link.receive() or []) == [slot] * answered  # else another engine is asked
    link.close()


def test_the_device_s_memory_is_a_gauge() -> None:
    core, fake, arena = serve(memory=Memory(3, 7))

    def look() -> None:
        if arena.gauges[Gauge.MEMORY_TOTAL]:
            core.stop()

    core.every_second(look)
    core.serve()
    assert list(arena.gauges[[Gauge.MEMORY_USED, Gauge.MEMORY_TOTAL]]) == list(fake.memory)
