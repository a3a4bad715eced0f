"""The front-end's door and the engine's loop together, over a thread and over a process."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from service.engine.arena import Gauge
from service.engine.client import EngineClient, Slot, SlotAnswer
from service.errors import DeadlineExceeded, EngineFailed, InternalError, NotReady, Overloaded
from service.images.decoders.threads import Threads
from tests.crew import threads
from tests.engine.harness import IMAGE, Engine
from tests.fakes import FakeStreams, fingerprint
from tests.loops import on_a_loop, until

LATER = 60.0


@pytest.fixture
def decoders() -> Iterator[Threads]:
    with threads(2) as some:
        yield some


def picture(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, IMAGE, np.uint8)


async def ask(
    client: EngineClient, image: NDArray[np.uint8], patience: float = LATER, bulk: bool = False
) -> SlotAnswer:
    with client.acquire(bulk=bulk) as slot:
        slot.pixels[...] = image
        return await slot.answer(client.clock() + patience, 10)


KINDS = pytest.mark.parametrize("kind", ["thread", "process"])


STREAMS = pytest.mark.parametrize("streams", [0, 3])


@STREAMS
@KINDS
@on_a_loop
async def test_everyone_gets_their_own_answer(kind: str, streams: int) -> None:
    async def one(client: EngineClient, seed: int) -> None:
        image = picture(seed)
        while True:
            try:
                answer = await ask(client, image)
            except Overloaded:
                await asyncio.sleep(random.random() / 100)
                continue
            assert (answer.result == fingerprint(image, 10)).all()
            assert 1 <= answer.batch_size <= 8
            assert answer.queue >= 0
            assert answer.inference >= 0
            return

    with Engine(kind, slots=16, delay=0.001, stream_count=streams) as engine:
        clients = [engine.connect() for _ in range(3)]
        await asyncio.gather(*(one(clients[seed % 3], seed) for seed in range(300)))
        assert engine.arena.free == 16


@KINDS
@on_a_loop
async def test_requests_that_wait_together_run_together(kind: str) -> None:
    with Engine(kind, delay=0.05, max_batch_size=4) as engine:
        client = engine.connect()
        answers = await asyncio.gather(*(ask(client, picture(seed)) for seed in range(16)))
        sizes = [answer.batch_size for answer in answers]
        assert max(sizes) == 4
        assert len({answer.batch for answer in answers}) <= 6  # the first may run alone, the rest is full


@KINDS
@on_a_loop
async def test_no_free_slot_is_overload(kind: str) -> None:
    with Engine(kind, slots=2, delay=0.2) as engine:
        client = engine.connect()
        running = [asyncio.create_task(ask(client, picture(seed))) for seed in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as overload:
            client.acquire()
        assert overload.value.retry_after >= 1
        with pytest.raises(Overloaded):
            client.check_capacity()
        await asyncio.gather(*running)
        client.check_capacity()
        assert engine.arena.free == 2


@KINDS
@on_a_loop
async def test_a_deadline_is_kept_while_a_batch_runs(kind: str) -> None:
    with Engine(kind, slots=4, delay=1.5, max_batch_size=1) as engine:
        client = engine.connect()
        first = asyncio.create_task(ask(client, picture(1)))
        await until(lambda: engine.arena.gauges[Gauge.RUNNING] > 0)
        with pytest.raises(DeadlineExceeded):
            await ask(client, picture(2), patience=0.1)
        assert not first.done()  # nobody waited for the batch
        await first
        await until(lambda: engine.arena.free == 4)


def counts_hang_ups(engine: Engine) -> tuple[EngineClient, list[int]]:
    """A client of ``engine``, and a list that grows with every hang-up that it counts."""
    hang_ups: list[int] = []
    client = EngineClient()
    client.on_cancelled(lambda: hang_ups.append(1))
    engine.connect(client)
    return client, hang_ups


async def blocks(engine: Engine, client: EngineClient) -> asyncio.Task[SlotAnswer]:
    """An image that is on the device, which goes on when ``may_run`` is set."""
    engine.runner.may_run.clear()
    blocker = asyncio.create_task(ask(client, picture(1)))
    await until(lambda: len(engine.runner.batches) == 1)
    return blocker


@on_a_loop
async def test_expired_and_cancelled_work_never_runs_and_only_hang_ups_count_as_such() -> None:
    with Engine("thread", slots=4, max_batch_size=1) as engine:
        client, hang_ups = counts_hang_ups(engine)
        blocker = await blocks(engine, client)
        late = asyncio.create_task(ask(client, picture(2), patience=0.05))
        gone = asyncio.create_task(ask(client, picture(3)))
        await asyncio.sleep(0.1)
        gone.cancel()
        await until(lambda: engine.arena.free == 3)  # both places are free before the device is
        with pytest.raises(DeadlineExceeded):
            await late
        engine.runner.may_run.set()
        await blocker
        assert len(engine.runner.batches) == 1
        assert len(hang_ups) == 1


@pytest.mark.parametrize("error", [None, RuntimeError("no numbers today")])
@on_a_loop
async def test_a_hang_up_after_the_model_ran_counts_as_none(error: Exception | None) -> None:
    with Engine("thread", slots=2) as engine:
        client, hang_ups = counts_hang_ups(engine)
        engine.runner.error = error
        gone = await blocks(engine, client)
        gone.cancel()
        engine.runner.may_run.set()
        await until(lambda: engine.arena.free == 2)
        assert hang_ups == []


@on_a_loop
async def test_a_place_forgets_that_somebody_hung_up_there() -> None:
    with Engine("thread", slots=2, max_batch_size=1) as engine:
        client, hang_ups = counts_hang_ups(engine)
        blocker = await blocks(engine, client)
        gone = asyncio.create_task(ask(client, picture(2)))
        await until(lambda: engine.arena.gauges[Gauge.QUEUE_DEPTH] == 1)
        gone.cancel()
        await until(lambda: engine.arena.free == 1)
        # The same place, left for another reason.
        with contextlib.suppress(ZeroDivisionError), client.acquire() as slot:
            waiting = asyncio.create_task(slot.answer(client.clock() + LATER, 10))
            await until(lambda: engine.arena.gauges[Gauge.QUEUE_DEPTH] == 1)
            waiting.cancel()
            raise ZeroDivisionError
        await until(lambda: engine.arena.free == 1)
        assert len(hang_ups) == 1
        engine.runner.may_run.set()
        await blocker


@KINDS
@on_a_loop
async def test_a_cancellation_at_any_moment_loses_no_slot(kind: str, decoders: Threads) -> None:
    async def one(client: EngineClient, seed: int) -> None:
        image = picture(seed)

        def write(pixels: NDArray[np.uint8]) -> None:
            time.sleep(random.random() / 500)
            pixels[...] = image

        with client.acquire() as slot:
            await slot.fill(decoders, write, client.clock() + LATER)
            answer = await slot.answer(client.clock() + LATER, 10)
            assert (answer.result == fingerprint(image, 10)).all()

    with Engine(kind, slots=8, delay=0.001, max_batch_size=4) as engine:
        client = engine.connect()
        random.seed(5)
        for round_ in range(60):
            tasks = [asyncio.create_task(one(client, 8 * round_ + index)) for index in range(8)]
            for task in tasks:
                await asyncio.sleep(random.random() / 1000)
                if random.random() < 0.6:
                    task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            bad = [result for result in results if isinstance(result, BaseException)]
            assert all(isinstance(result, asyncio.CancelledError) for result in bad)
            await until(lambda: engine.arena.free == 8)
        assert client.pending == 0


@on_a_loop
async def test_a_slot_is_not_free_while_a_thread_writes_into_it(decoders: Threads) -> None:
    import threading

    may_end = threading.Event()

    def write(pixels: NDArray[np.uint8]) -> None:
        may_end.wait(10)

    with Engine("thread", slots=1) as engine:
        client = engine.connect()

        async def decode(slot: Slot) -> None:
            with slot:
                await slot.fill(decoders, write, client.clock() + LATER)

        task = asyncio.create_task(decode(client.acquire()))
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.sleep(0.02)
        assert engine.arena.free == 0
        may_end.set()
        await until(lambda: engine.arena.free == 1)


@on_a_loop
async def test_a_stream_takes_the_next_image_while_another_is_at_work() -> None:
    stuck = picture(0)
    stuck.flat[0] = FakeStreams.STUCK
    with Engine("thread", stream_count=2) as engine:
        client = engine.connect()
        assert engine.runner.streams
        engine.runner.streams.may_leave.clear()
        engine.runner.may_run.clear()
        whole = asyncio.create_task(
            ask(client, picture(1))
        )  # has the device for itself, so that two come to wait
        await until(lambda: bool(engine.runner.batches))
        waiting = [asyncio.create_task(ask(client, image)) for image in (stuck, picture(2))]
        await until(lambda: engine.arena.gauges[Gauge.QUEUE_DEPTH] == 2)
        engine.runner.may_run.set()
        await whole
        for seed in range(3, 8):
            assert (await ask(client, picture(seed))).batch_size == 1
        assert not waiting[0].done()
        engine.runner.streams.may_leave.set()
        await asyncio.gather(*waiting)
        assert len(engine.runner.batches) == 1
        # Nobody is at work, so the next one has the whole device again.
        await ask(client, picture(9))
        assert len(engine.runner.batches) == 2
        assert engine.arena.free == engine.arena.geometry.slots


@STREAMS
@on_a_loop
async def test_a_failing_model_is_an_internal_error_and_the_next_batch_is_fine(streams: int) -> None:
    with Engine("thread", slots=9, stream_count=streams) as engine:
        client = engine.connect()
        engine.runner.error = RuntimeError("out of memory")
        failed = await asyncio.gather(*(ask(client, picture(1)) for _ in range(9)), return_exceptions=True)
        assert all(isinstance(error, InternalError) for error in failed)
        engine.runner.error = None
        answers = await asyncio.gather(*(ask(client, picture(2)) for _ in range(9)))
        assert all((answer.result == fingerprint(picture(2), 10)).all() for answer in answers)
        assert engine.arena.free == 9


@on_a_loop
async def test_whoever_waits_for_a_killed_engine_is_answered_by_the_next() -> None:
    again: list[None] = []
    with Engine("process", slots=8, delay=600.0) as engine:
        client = engine.connect()
        client.on_resubmitted(lambda: again.append(None))
        decoding = client.acquire()  # submitted when there is no engine
        waiting = [asyncio.create_task(ask(client, picture(seed))) for seed in range(6)]
        await asyncio.sleep(0.5)
        engine.process.kill()
        await until(lambda: not client.connected)
        with pytest.raises(EngineFailed):
            client.acquire()
        waiting.append(asyncio.create_task(_fill(decoding, 6)))
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        with Engine("process", slots=4) as another:  # who finds no place there waits for one
            another.connect(client)
            for seed, answer in enumerate(await asyncio.gather(*waiting)):
                assert (answer.result == fingerprint(picture(seed), 10)).all()
            assert len(again) == 6
            assert another.arena.free == 4


async def _fill(slot: Slot, seed: int) -> SlotAnswer:
    with slot:
        slot.pixels[...] = picture(seed)
        return await slot.answer(time.monotonic() + LATER, 10)


@on_a_loop
async def test_a_standby_takes_over_what_a_dead_engine_had() -> None:
    with Engine("process", slots=16, delay=600.0) as engine, Engine("process", slots=16) as standby:
        client = engine.connect()
        standby.connect(client, standby=True)
        waiting = [asyncio.create_task(ask(client, picture(seed), bulk=seed % 2 == 1)) for seed in range(6)]
        await asyncio.sleep(0.2)
        assert standby.arena.free == 16
        engine.process.kill()
        for seed, answer in enumerate(await asyncio.gather(*waiting)):
            assert (answer.result == fingerprint(picture(seed), 10)).all()
        assert ((await ask(client, picture(9))).result == fingerprint(picture(9), 10)).all()
        assert standby.arena.free == 16


@on_a_loop
async def test_an_image_that_was_with_two_dead_engines_goes_to_no_third(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        Engine("process", slots=8, delay=600.0) as first,
        Engine("process", slots=8, delay=600.0) as second,
        Engine("process", slots=8) as third,
    ):
        client = first.connect()
        waiting = asyncio.create_task(ask(client, picture(1)))
        for engine in (first, second):
            if engine is second:
                second.connect(client)
            await until(lambda: client.pending == 1)
            engine.process.kill()
            await until(lambda: not client.connected)
        third.connect(client)
        with pytest.raises(EngineFailed, match="two engines"):
            await waiting
        assert "two engines died while they had the same image" in caplog.text
        assert third.arena.free == 8


@pytest.mark.parametrize("why", ["deadline", "end", "hang-up", "model"])
@on_a_loop
async def test_nobody_waits_for_another_engine_in_vain(why: str) -> None:
    with Engine("process", slots=8, delay=600.0) as engine, Engine("process", slots=8) as other:
        client = engine.connect()
        waiting = asyncio.create_task(ask(client, picture(1), 0.3 if why == "deadline" else LATER))
        in_turn = asyncio.create_task(
            client.acquire_in_turn(client.clock() + (0.3 if why == "deadline" else LATER))
        )
        await until(lambda: in_turn.done())
        in_turn.result().__exit__(None, None, None)
        await until(lambda: client.pending == 1)
        engine.process.kill()
        await until(lambda: not client.connected)
        if why == "end":
            client.expect_no_other()
        elif why == "hang-up":
            waiting.cancel()
        elif why == "model":
            other.connect(client, model="another one")
        expected = {"deadline": DeadlineExceeded, "hang-up": asyncio.CancelledError}.get(why, EngineFailed)
        with pytest.raises(expected):
            await waiting
        assert other.arena.free == 8


@on_a_loop
async def test_the_images_of_a_request_that_wait_for_a_place_wait_for_an_engine_as_well() -> None:
    with Engine("process", slots=1, delay=600.0) as engine:
        client = engine.connect()
        taken = client.acquire()
        in_turn = asyncio.create_task(client.acquire_in_turn(client.clock() + LATER))
        await asyncio.sleep(0.02)
        engine.process.kill()
        await until(lambda: not client.connected)
        with Engine("process", slots=1) as another:
            another.connect(client)
            with await in_turn as slot:
                slot.pixels[...] = picture(3)
                answer = await slot.answer(client.clock() + LATER, 10)
            assert (answer.result == fingerprint(picture(3), 10)).all()
            taken.__exit__(None, None, None)
            await until(lambda: another.arena.free == 1)


@KINDS
@on_a_loop
async def test_the_slots_of_a_dead_front_end_come_back(kind: str) -> None:
    with Engine(kind, slots=8, delay=0.3, max_batch_size=2) as engine:
        dying, living = engine.connect(), engine.connect()
        running = [asyncio.create_task(ask(dying, picture(seed))) for seed in range(4)]
        held = dying.acquire()  # taken and never submitted: in the middle of a decode
        await asyncio.sleep(0.1)
        mine = asyncio.create_task(ask(living, picture(7)))
        await asyncio.sleep(0.05)
        dying.detach()  # closes its end, as the kernel does for a killed process
        await asyncio.gather(*running, return_exceptions=True)
        assert (await mine).result.tolist() == fingerprint(picture(7), 10).tolist()
        await until(lambda: engine.arena.free == 8)
        assert held.number >= 0


@on_a_loop
async def test_without_an_engine_nothing_is_ready() -> None:
    client = EngineClient()
    assert not client.connected
    with pytest.raises(NotReady):
        client.acquire()


@on_a_loop
async def test_taking_in_turn_waits_for_room_until_the_deadline() -> None:
    with Engine("thread", slots=1, delay=0.05) as engine:
        client = engine.connect()
        running = asyncio.create_task(ask(client, picture(1)))
        await asyncio.sleep(0)
        with await client.acquire_in_turn(client.clock() + LATER) as slot:
            assert slot.number == 0
            with pytest.raises(DeadlineExceeded):
                await client.acquire_in_turn(client.clock() + 0.02)
        await running


@on_a_loop
async def test_what_decoding_costs_is_told_to_everyone(decoders: Threads) -> None:
    with Engine("thread") as engine:
        client = engine.connect(EngineClient(threads=3))
        with client.acquire() as slot:
            await slot.fill(decoders, lambda pixels: time.sleep(0.01), client.clock() + LATER)
            await slot.answer(client.clock() + LATER, 10)
        images, seconds, threads = engine.arena.decoding[1, :3]
        assert (images, threads) == (1, 3)
        assert seconds >= 0.01
        client.detach()
        await until(lambda: engine.arena.decoding[1, 2] == 0)  # its threads have gone with it
        assert engine.arena.decoding[1, 0] == 1


@on_a_loop
async def test_a_batch_that_never_ends_is_said_once() -> None:
    with Engine("thread") as engine:
        said: list[float] = []
        engine.core.when_overdue(0.05, said.append)
        client = engine.connect()
        engine.runner.may_run.clear()
        hanging = asyncio.create_task(ask(client, picture(1)))
        await until(lambda: bool(said))
        await asyncio.sleep(0.6)  # the loop has looked at its gauges twice since
        engine.runner.may_run.set()
        await hanging
        assert len(said) == 1
        assert said[0] > 0.05


@on_a_loop
async def test_whatever_is_to_be_done_every_second_is_done() -> None:
    with Engine("thread") as engine:
        done: list[str] = []
        engine.core.every_second(lambda: done.append("alive"))
        engine.core.every_second(lambda: done.append("flushed"))
        await until(lambda: done.count("alive") >= 2 and done.count("flushed") >= 2)
