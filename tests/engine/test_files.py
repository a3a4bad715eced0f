"""The engine's own decoder, with a fake one of the same contract: who decodes what, and what becomes of the slots."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
from numpy.typing import NDArray

from service.engine.arena import Arena, Decoding, Gauge, Geometry
from service.engine.batcher import Batcher
from service.engine.client import EngineClient
from service.engine.core import EngineCore
from service.engine.files import MAX_WAITING, FileDecoding, serve
from service.errors import DeadlineExceeded
from service.images.decoders.threads import ThreadWriting
from service.shared.transport import Link, socket_pair
from service.shared.writing import Ended, Work, Writing
from tests.fakes import FakeRunner, fingerprint
from tests.loops import until

SHAPE = (4, 8, 3)


class FakeDecoder:
    """Files are b"F" and a level; those that begin otherwise it refuses. ``may`` holds it back."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.may = threading.Event()
        self.may.set()
        self.began = threading.Event()
        self.error: Exception | None = None

    def decode(self, files: Sequence[bytes], into: Sequence[NDArray[np.uint8]]) -> list[bool]:
        self.began.set()
        assert self.may.wait(60)
        if self.error:
            raise self.error
        self.seen += files
        for data, pixels in zip(files, into, strict=True):
            if data.startswith(b"F"):
                pixels[...] = data[1]
        return [data.startswith(b"F") for data in files]


class Photo:
    """Work from a file. By a decoder here its pixels are one level brighter, so that it shows who did it."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __call__(self, pixels: NDArray[np.uint8]) -> None:
        pixels[...] = self.data[1] + 1

    def file(self) -> bytes | None:
        return None if self.data.startswith(b"-") else self.data


class Slow:
    """Decoders whose one thread is busy until it is let go."""

    stuck = False

    def __init__(self) -> None:
        self.begun: list[Work] = []

    def begin(self, work: Work, pixels: NDArray[np.uint8], ended: Ended) -> Writing:
        self.begun.append(work)
        writing = ThreadWriting(asyncio.get_running_loop(), work, pixels, ended)
        threading.Thread(target=writing).start()
        return writing

    def submit(self, job: Callable[[], object], /) -> object:
        raise AssertionError("nothing else is done here")


class Site:
    def __init__(self, decoder: FakeDecoder | None, slots: int = 6) -> None:
        self.runner = FakeRunner()
        self.arena = Arena.create(Geometry(slots, *SHAPE, self.runner.results))
        self.file_decoder, files = threading.Thread(), None
        if decoder:
            ours, theirs = map(Link, socket_pair())
            files = FileDecoding(ours)

            def decode() -> None:
                with (
                    contextlib.suppress(SystemExit),
                    contextlib.closing(theirs),
                ):  # as the end of a process does
                    serve(theirs, decoder, self.arena)

            self.file_decoder = threading.Thread(target=decode)
            self.file_decoder.start()
        self.core = EngineCore(self.runner, self.arena, Batcher(8), capacity=100.0, files=files)
        self.decoders = Slow()
        self.ends: dict[int, socket.socket] = {}
        """The engine's ends of the links, by front-end."""

    @contextmanager
    def serving(self) -> Iterator[None]:
        stop, stopped = socket_pair()
        self.core.watch(stopped, self.core.stop)
        thread = threading.Thread(target=self.core.serve)
        thread.start()
        try:
            yield
        finally:
            stop.close()
            thread.join(60)
            assert not thread.is_alive()
            stopped.close()
            if self.file_decoder.ident is not None:
                self.file_decoder.join(60)
                assert not self.file_decoder.is_alive()

    def client(self, number: int = 1, client: EngineClient | None = None) -> EngineClient:
        ours, theirs = socket_pair()
        self.ends[number] = ours
        self.core.attach(number, Link(ours))
        client = client or EngineClient(threads=1)
        client.attach(Arena(os.dup(self.arena.descriptor), self.arena.geometry), Link(theirs), number)
        (connection,) = client.connections
        connection.decoding = 1  # its one decoder is busy with something else
        return client

    async def ask(self, client: EngineClient, photo: Photo, deadline: float = float("inf")) -> int:
        """The level of the pixels that the model saw."""
        patience = client.clock() + 60 if deadline == float("inf") else deadline
        with client.acquire(patience) as slot:
            await slot.fill(self.decoders, photo, patience)
            answer = await slot.answer(patience, self.runner.results)
            level = int(slot.pixels.flat[0])
            assert (slot.pixels == level).all()
            assert (answer.result == fingerprint(slot.pixels, self.runner.results)).all()
            return level


def run(decoder: FakeDecoder | None, scenario: Callable[[Site], object], slots: int = 6) -> Site:
    site = Site(decoder, slots)

    async def play() -> None:
        with site.serving():
            await until(lambda: decoder is None or site.arena.gauges[Gauge.FILES] > 0)
            result = scenario(site)
            assert asyncio.iscoroutine(result)
            await result
            await until(lambda: site.arena.free == slots)

    asyncio.run(play())
    return site


def test_a_file_is_decoded_in_the_engine_while_no_decoder_is_free() -> None:
    decoder = FakeDecoder()

    async def scenario(site: Site) -> None:
        client = site.client()
        levels = await asyncio.gather(*(site.ask(client, Photo(b"F" + bytes([k]))) for k in range(20, 25)))
        assert levels == list(range(20, 25))
        assert sorted(decoder.seen) == [b"F" + bytes([k]) for k in range(20, 25)]
        (connection,) = client.connections
        connection.decoding = 0  # a decoder is free: it is taken
        assert await site.ask(client, Photo(b"F\x30")) == 0x31
        connection.decoding = 1
        assert await site.ask(client, Photo(b"-\x30")) == 0x31  # not a plain file
        client.detach()

    run(decoder, scenario)


@pytest.mark.parametrize("trouble", ["refused", "raised", "none"])
def test_what_the_engine_does_not_decode_the_front_end_does(trouble: str) -> None:
    decoder = FakeDecoder()
    decoder.error = RuntimeError("no memory for this") if trouble == "raised" else None

    async def scenario(site: Site) -> None:
        client = site.client()
        data = b"X\x10" if trouble == "refused" else b"F\x10"
        assert await site.ask(client, Photo(data)) == 0x11
        client.detach()

    site = run(None if trouble == "none" else decoder, scenario)
    assert len(site.decoders.begun) == 1


def test_a_file_whose_engine_dies_is_decoded_here_and_answered_by_the_next() -> None:
    decoder, next_site = FakeDecoder(), Site(None)

    async def scenario(site: Site) -> None:
        decoder.may.clear()
        client = site.client()
        waiting = asyncio.create_task(site.ask(client, Photo(b"F\x10")))
        await until(decoder.began.is_set)
        site.ends[1].shutdown(socket.SHUT_RDWR)  # as the end of its process does
        await until(lambda: len(site.decoders.begun) == 1)
        with next_site.serving():
            next_site.client(client=client)
            assert await waiting == 0x11
            await until(lambda: next_site.arena.free == 6)
            client.detach()
        decoder.may.set()
        site.arena.release(0)  # nobody else does: the engine is no more

    run(decoder, scenario)


def test_a_decoder_that_fails_again_and_again_gets_no_more(caplog: pytest.LogCaptureFixture) -> None:
    decoder = FakeDecoder()
    decoder.error = RuntimeError("CUDA error")

    async def scenario(site: Site) -> None:
        client = site.client()
        for _ in range(5):
            assert await site.ask(client, Photo(b"F\x10")) == 0x11
        assert site.arena.gauges[Gauge.FILES] == 0
        client.detach()

    run(decoder, scenario)
    assert "has ended" in caplog.text
    assert caplog.text.count("cannot decode") == 3


def test_failures_that_are_not_in_a_row_close_nothing(caplog: pytest.LogCaptureFixture) -> None:
    decoder = FakeDecoder()

    async def scenario(site: Site) -> None:
        client = site.client()
        for _ in range(3):
            for error in (RuntimeError("CUDA error"), RuntimeError("CUDA error"), None):
                decoder.error = error
                assert await site.ask(client, Photo(b"F\x10")) == (0x11 if error else 0x10)
        assert site.arena.gauges[Gauge.FILES] == MAX_WAITING
        client.detach()

    run(decoder, scenario)
    assert caplog.text.count("cannot decode") == 6


def test_the_engine_takes_as_many_files_as_may_wait_and_says_how_many_more() -> None:
    decoder = FakeDecoder()

    async def scenario(site: Site) -> None:
        decoder.may.clear()
        client = site.client()
        assert site.arena.gauges[Gauge.FILES] == MAX_WAITING
        waiting = [asyncio.create_task(site.ask(client, Photo(b"F" + bytes([k])))) for k in range(5)]
        await until(lambda: site.arena.gauges[Gauge.FILES] == MAX_WAITING - 5)
        decoder.may.set()
        assert await asyncio.gather(*waiting) == list(range(5))
        await until(lambda: site.arena.gauges[Gauge.FILES] == MAX_WAITING)
        client.detach()

    run(decoder, scenario)


def test_a_slot_stays_taken_while_the_engine_decodes_into_it_whoever_leaves() -> None:
    decoder = FakeDecoder()

    async def scenario(site: Site) -> None:
        decoder.may.clear()
        client = site.client()
        hung_up = asyncio.create_task(site.ask(client, Photo(b"F\x10")))
        await until(decoder.began.is_set)
        hung_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hung_up
        assert site.arena.free == 5
        with pytest.raises(DeadlineExceeded):
            await site.ask(client, Photo(b"F\x11"), client.clock() + 0.01)
        assert site.arena.free == 4
        decoder.may.set()
        await until(lambda: site.arena.free == 6)
        assert await site.ask(client, Photo(b"F\x12")) == 0x12
        client.detach()

    site = run(decoder, scenario)
    assert site.decoders.begun == []


def test_a_dead_front_end_s_slots_come_back_after_the_engine_has_decoded_into_them() -> None:
    decoder = FakeDecoder()

    async def scenario(site: Site) -> None:
        decoder.may.clear()
        client, other = site.client(1), site.client(2)
        dies = asyncio.create_task(site.ask(client, Photo(b"F\x10")))
        await until(decoder.began.is_set)
        client.detach()
        with pytest.raises(Exception, match="engine was left"):
            await dies
        await until(lambda: site.arena.decoding[1, Decoding.THREADS] == 0)  # the engine has seen it
        assert site.arena.free == 5
        decoder.may.set()
        await until(lambda: site.arena.free == 6)
        assert 1 not in site.core._front_ends
        assert await site.ask(other, Photo(b"F\x12")) == 0x12
        other.detach()

    run(decoder, scenario)


def test_what_a_dead_decoder_had_is_decoded_by_the_front_ends(caplog: pytest.LogCaptureFixture) -> None:
    class Dying(FakeDecoder):
        def decode(self, files: Sequence[bytes], into: Sequence[NDArray[np.uint8]]) -> list[bool]:
            super().decode(files, into)
            raise SystemExit  # as a kill does, it skips everything but the close of the socket

    decoder = Dying()

    async def scenario(site: Site) -> None:
        decoder.may.clear()
        client = site.client()
        waiting = [asyncio.create_task(site.ask(client, Photo(b"F" + bytes([0x10 + k])))) for k in range(3)]
        await until(decoder.began.is_set)
        decoder.may.set()
        assert await asyncio.gather(*waiting) == [0x11, 0x12, 0x13]
        assert await site.ask(client, Photo(b"F\x20")) == 0x21
        assert site.arena.gauges[Gauge.FILES] == 0
        client.detach()

    run(decoder, scenario)
    assert "has ended" in caplog.text
