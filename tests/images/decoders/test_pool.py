"""Decoders as processes: what they may do, who is killed and replaced, and that nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.engine.arena import Decoding, Gauge
from service.engine.client import EngineClient
from service.errors import (
    DeadlineExceeded,
    EngineFailed,
    ImageTooLarge,
    InternalError,
    InvalidImage,
    Overloaded,
    RequestError,
)
from service.images.decoders import cost, job
from service.images.decoders.cost import Cost
from service.images.decoders.decoder import DecoderHandle
from service.images.decoders.picture import Picture, Recipe
from service.images.decoders.pool import DecoderPool
from service.preprocess import Preprocessing
from tests.engine.harness import IMAGE, Engine
from tests.fuzz import corpus
from tests.images.decoders.misbehaving import (
    FORBIDDEN,
    GOOD,
    LANDLOCKED,
    LATER,
    MEGABYTE,
    RECIPE,
    ROOM,
    SPEC,
    alive,
    decode,
    decoders_of,
    expected,
    landlock_scopes_signals,
    pool,
)
from tests.loops import on_a_loop, until
from tests.pictures import encode, oriented
from tests.pictures import picture as drawing


@on_a_loop
async def test_pictures_of_several_models_go_through_the_same_decoders(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a switch to a model that sees larger pictures: whatever is on its way is prepared for its own model."""
    specs = [SPEC, Preprocessing(resize=5, crop=(3, 4)), Preprocessing(resize=30, crop=(20, 24))]
    async with pool(monkeypatch) as decoders:
        decoders.configure(Recipe(specs[1], RECIPE.max_pixels, fast=False), ROOM)
        await decode(decoders, GOOD)
        before = set(decoders_of(decoders))
        for spec in (specs[1], SPEC, specs[1]):  # has room where the larger one has
            found = await decode(decoders, GOOD, recipe=Recipe(spec, RECIPE.max_pixels, fast=False))
            assert np.array_equal(found, expected(GOOD, spec))
        assert before & set(decoders_of(decoders))
        waiting = [asyncio.create_task(decode(decoders, GOOD)) for _ in range(6)]
        decoders.configure(Recipe(specs[2], RECIPE.max_pixels, fast=False), ROOM)
        for spec in specs * 4:
            waiting.append(
                asyncio.create_task(
                    decode(decoders, GOOD, recipe=Recipe(spec, RECIPE.max_pixels, fast=False))
                )
            )
        right = [expected(GOOD)] * 6 + [expected(GOOD, spec) for spec in specs * 4]
        for found, wanted in zip(await asyncio.gather(*waiting), right, strict=True):
            assert np.array_equal(found, wanted)


@on_a_loop
async def test_every_picture_and_every_refusal_is_what_it_is_without_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whole and damaged files of every kind: nothing in a reader needs what a decoder has given up."""
    async with pool(monkeypatch) as decoders:
        files = [*corpus.whole().items(), *corpus.damaged(100, seed=7)]
        for name, data in files:
            if len(data) > ROOM:
                continue
            right = expected(data)
            try:
                got: NDArray[np.uint8] | str = await decode(decoders, data)
            except RequestError as error:
                got = f"{error.code}: {error}"
            assert type(got) is type(right), (name, got, right)
            assert np.array_equal(got, right) if isinstance(right, np.ndarray) else got == right, name


@on_a_loop
async def test_a_photo_that_is_to_be_drawn_comes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pool(monkeypatch) as decoders:
        data = oriented(drawing(size=(1500, 900)), "JPEG", 6)
        wanted = Picture(data, RECIPE, drawn=True)
        writing = decoders.begin(wanted, np.zeros(SPEC.shape, np.uint8), lambda seconds: None)
        await writing.done
        here = Picture(data, RECIPE, drawn=True)
        here(np.zeros(SPEC.shape, np.uint8))
        assert wanted.size == here.size == (1500, 900)
        assert wanted.photo is not None
        assert here.photo is not None
        assert wanted.photo.tobytes() == here.photo.tobytes()


@on_a_loop
async def test_who_exceeds_what_an_honest_picture_takes_is_killed_and_the_others_are_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job, "SMALL", Cost(48 * MEGABYTE, 0.4))
    killed: list[tuple[str, str]] = []
    async with pool(
        monkeypatch, quick=1, killed=lambda kind, reason: killed.append((kind, reason))
    ) as decoders:
        spinning = [asyncio.create_task(decode(decoders, b"spin:")) for _ in range(2)]
        right = expected(GOOD)
        while not all(task.done() for task in spinning):
            assert np.array_equal(await decode(decoders, GOOD), right)
        for task in spinning:
            with pytest.raises(InvalidImage, match="of CPU"):
                task.result()
        assert killed == [("none", "effort")] * 2
        await until(lambda: len(decoders_of(decoders)) == 1)
        assert np.array_equal(await decode(decoders, GOOD), right)


@on_a_loop
async def test_a_deadline_ends_the_work_and_gives_the_slot_back(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[tuple[str, str]] = []
    with Engine("thread", slots=2) as engine:
        client = engine.connect(EngineClient(threads=2))
        async with pool(monkeypatch, killed=lambda kind, reason: killed.append((kind, reason))) as decoders:
            await decode(decoders, GOOD)
            before = set(decoders_of(decoders))

            async def ask(data: bytes, patience: float) -> None:
                with client.acquire() as slot:
                    await slot.fill(decoders, Picture(data, RECIPE), client.clock() + patience)

            results = await asyncio.gather(ask(b"spin:", 0.2), ask(b"sleep:600", 0.2), return_exceptions=True)
            assert [type(result) for result in results] == [DeadlineExceeded] * 2
            assert engine.arena.free == 2  # nobody but this loop writes into it
            await until(lambda: killed == [("none", "deadline")] * 2)
            await until(lambda: not before & set(decoders_of(decoders)))
            await ask(GOOD, LATER)
            assert (engine.arena.pixels == expected(GOOD)).all(axis=(1, 2, 3)).any()


@on_a_loop
async def test_a_client_that_has_gone_is_not_decoded_for(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[tuple[str, str]] = []
    async with pool(
        monkeypatch, quick=1, killed=lambda kind, reason: killed.append((kind, reason))
    ) as decoders:
        await decode(decoders, GOOD)
        running, waiting = (asyncio.create_task(decode(decoders, b"sleep:600")) for _ in range(2))
        await asyncio.sleep(0)
        for task in (waiting, running):
            task.cancel()
        assert np.array_equal(await decode(decoders, GOOD), expected(GOOD))
        await until(lambda: killed == [("none", "abandoned")])  # who waited was never begun


@on_a_loop
async def test_a_crash_is_a_damaged_image_and_one_that_was_not_its_fault_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed: list[tuple[str, str]] = []
    async with pool(monkeypatch, killed=lambda kind, reason: killed.append((kind, reason))) as decoders:
        with pytest.raises(InvalidImage, match="does not survive"):
            await decode(decoders, b"crash:")
        assert killed == [("none", "crash")]
        await until(lambda: len(decoders_of(decoders)) == 2)
        slow = asyncio.create_task(decode(decoders, b"sleep:0.5:" + GOOD))
        await asyncio.sleep(0.1)
        for pid in decoders_of(decoders):
            with contextlib.suppress(ProcessLookupError):  # the one that crashed, buried just now
                os.kill(pid, signal.SIGKILL)
        with pytest.raises(RequestError):  # it is no image; but it was decoded to find that out
            await slow
        assert len(killed) == 1
        assert np.array_equal(await decode(decoders, GOOD), expected(GOOD))


@on_a_loop
async def test_a_defect_of_ours_is_an_internal_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pool(monkeypatch) as decoders:
        with pytest.raises(InternalError):
            await decode(decoders, b"defect:")
        assert np.array_equal(await decode(decoders, GOOD), expected(GOOD))


@on_a_loop
async def test_a_decoder_may_do_nothing_but_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    if landlock_scopes_signals():
        for name, forbidden in LANDLOCKED.items():
            monkeypatch.setitem(FORBIDDEN, name, forbidden)
    async with pool(monkeypatch) as decoders:
        answers = (await decode(decoders, b"deny:%d" % os.getpid())).flat[: len(FORBIDDEN)]
        assert dict(zip(FORBIDDEN, answers.tolist(), strict=True)) == dict.fromkeys(FORBIDDEN, 1)
        await until(lambda: len(decoders_of(decoders)) == 2)
        for pid in decoders_of(decoders):
            assert_has_given_up(pid)


def assert_has_given_up(pid: int) -> None:
    limits = Path(f"/proc/{pid}/limits").read_text()
    for name in ("Max open files", "Max file size", "Max core file size", "Max processes"):
        (line,) = (line for line in limits.splitlines() if line.startswith(name))
        assert line.removeprefix(name).split()[:2] == ["0", "0"], line
    assert "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text()
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"


@on_a_loop
async def test_memory_ends_where_the_picture_was_allowed_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pool(monkeypatch) as decoders:
        assert (await decode(decoders, b"take:20") == 7).all()
        assert (await decode(decoders, b"take:300") == 7).all()  # the second time, with the largest allowance
        with pytest.raises(InvalidImage, match="more memory"):
            await decode(decoders, b"take:3000")
        assert np.array_equal(await decode(decoders, GOOD), expected(GOOD))


@on_a_loop
async def test_a_large_picture_stays_with_the_decoder_that_reckoned_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = Counter[str]()
    for way in (DecoderHandle.take, DecoderHandle.retry):
        count(monkeypatch, way, taken)
    data = encode(Image.new("RGB", (3000, 3000), (10, 200, 30)), "PNG")
    async with pool(monkeypatch, quick=1) as decoders:
        assert np.array_equal(await decode(decoders, data), expected(data))
        assert np.array_equal(await decode(decoders, GOOD), expected(GOOD))
    assert taken == {"take": 2, "retry": 1}


def count(monkeypatch: pytest.MonkeyPatch, method: Callable[..., Any], calls: Counter[str]) -> None:
    """Counts the calls of a decoder's ``method``."""

    def counted(*arguments: Any) -> Any:
        calls[method.__name__] += 1
        return method(*arguments)

    monkeypatch.setattr(DecoderHandle, method.__name__, counted)


@on_a_loop
async def test_a_decoder_that_gets_no_processor_is_not_one_that_works_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the processor is short, more decoders would only share it."""
    async with pool(monkeypatch, quick=1) as decoders:
        await decode(decoders, GOOD)
        (only,) = before = decoders_of(decoders)
        os.kill(only, signal.SIGSTOP)
        waits = asyncio.create_task(decode(decoders, GOOD))
        looked = Counter[str]()
        with monkeypatch.context() as patch:
            tick = DecoderPool._tick
            patch.setattr(DecoderPool, "_tick", lambda self: (looked.update(["tick"]), tick(self)))
            await until(lambda: looked["tick"] > 3)
        assert decoders_of(decoders) == before
        os.kill(only, signal.SIGCONT)
        assert np.array_equal(await waits, expected(GOOD))


@on_a_loop
async def test_pictures_share_the_memory_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.new("RGB", (3000, 3000), (10, 200, 30)), "PNG")
    right = expected(data)
    needed = 16 * MEGABYTE + 2 * len(data) + 4 * 9_000_000
    with Engine("thread", slots=8) as engine:
        client = engine.connect(EngineClient(threads=2))
        gauge, held = engine.arena.gauges, engine.arena.decoding
        async with pool(monkeypatch, memory=client.memory) as decoders:
            gauge[Gauge.DECODE_MEMORY] = needed * 1.5
            client.memory.acquire(MEGABYTE)
            results = await asyncio.gather(*(decode(decoders, data) for _ in range(4)))
            assert all(np.array_equal(result, right) for result in results)
            await until(lambda: held[:, Decoding.MEMORY].sum() == MEGABYTE)  # all of it came back
            gauge[Gauge.DECODE_MEMORY] = needed / 2
            with pytest.raises(ImageTooLarge, match="memory limit"):
                await decode(decoders, data)
            gauge[Gauge.DECODE_MEMORY] = needed * 1.5
            assert client.memory.acquire(needed)  # as another front-end does
            waiting = [asyncio.create_task(decode(decoders, data)) for _ in range(20)]
            await until(lambda: sum(task.done() for task in waiting) == 4)
            for task in waiting:
                if task.done():
                    assert isinstance(task.exception(), Overloaded)
            assert np.array_equal(await decode(decoders, GOOD), expected(GOOD))  # small ones pass them by
            with pytest.raises(DeadlineExceeded):
                await decode_in_line(decoders, data, waiting)
            client.memory.release(needed)
            assert all(
                np.array_equal(result, right)  # type: ignore[arg-type]
                for result in await asyncio.gather(*waiting, return_exceptions=True)
                if not isinstance(result, (Overloaded, asyncio.CancelledError))
            )
        assert held[:, Decoding.MEMORY].sum() == MEGABYTE


async def decode_in_line(decoders: DecoderPool, data: bytes, waiting: list[asyncio.Task[Any]]) -> None:
    next(task for task in waiting if not task.done()).cancel()
    await asyncio.sleep(0)
    await decode(decoders, data, patience=0.3)


@on_a_loop
async def test_a_pool_whose_decoders_do_not_answer_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.images.decoders.pool._STUCK", 0.2)
    async with pool(monkeypatch, quick=1) as decoders:
        await decode(decoders, GOOD)
        busy = [asyncio.create_task(decode(decoders, b"sleep:600")) for _ in range(8)]
        await until(lambda: decoders.stuck, patience=60)
        assert decoders.busy_seconds > 0.2
        decoders.give_up(lambda: EngineFailed("no more"))
        assert all(
            isinstance(error, EngineFailed) for error in await asyncio.gather(*busy, return_exceptions=True)
        )
        await decode(decoders, GOOD)
        assert not decoders.stuck


@on_a_loop
async def test_another_recipe_is_for_pictures_that_come_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pool(monkeypatch) as decoders:
        await decode(decoders, GOOD)
        before = set(decoders_of(decoders))
        decoders.configure(RECIPE, ROOM)
        assert set(decoders_of(decoders)) == before
        other = Recipe(Preprocessing(resize=30, crop=(20, 25)), 50_000_000, fast=False)
        decoders.configure(other, ROOM)
        pixels = np.zeros(other.preprocessing.shape, np.uint8)
        await decoders.begin(Picture(GOOD, other), pixels, lambda seconds: None).done
        assert pixels.any()
        await until(lambda: not before & set(decoders_of(decoders)))


@on_a_loop
async def test_a_keeper_that_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = asyncio.Event()
    async with pool(monkeypatch, lost=told.set) as decoders:
        await decode(decoders, GOOD)
        pids = decoders_of(decoders)
        os.kill(decoders._keeper.pid, signal.SIGKILL)
        await told.wait()
        await until(lambda: not any(map(alive, pids)))


def test_nothing_stays_when_a_front_end_is_killed() -> None:
    program = """
import asyncio, numpy as np, sys
from service.images.decoders import picture
from tests.images.decoders import misbehaving as here
from service.images.decoders.keeper import Keeper
from service.images.decoders.pool import DecoderPool
from service.engine.decode_memory import DecodeMemory
picture.prepare = here.tricky
keeper = Keeper()

async def main():
    pool = DecoderPool(keeper, 2, DecodeMemory())
    pool.configure(here.RECIPE, here.ROOM)
    await here.decode(pool, here.GOOD)
    busy = asyncio.create_task(here.decode(pool, b"spin:"))
    await asyncio.sleep(0.1)
    print(keeper.pid, *here.decoders_of(pool), flush=True)
    await busy

asyncio.run(main())
"""
    front_end = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert front_end.stdout is not None
    pids = [int(word) for word in front_end.stdout.readline().split()]
    assert len(pids) == 3
    front_end.kill()
    front_end.communicate()
    give_up = time.monotonic() + 30
    while any(map(alive, pids)):
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_costs_are_no_less_than_what_was_measured() -> None:
    """MiB of a 50-megapixel WebP, by benchmarks.pictures."""
    assert cost.largest(50_000_000, 10_000_000).memory > 764 * MEGABYTE
    assert SPEC.shape == IMAGE
