"""A front-end's end of the link: what the kernel does not take at once, and what becomes of the slots in the end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from service.engine.arena import FILE, Decoding, Gauge, Outcome
from service.engine.connection import Connection
from service.errors import EngineFailed
from service.shared.outputs import OutputKind
from tests.engine.scripted import NUMBER, ScriptedEngine
from tests.loops import on_a_loop, until

SLOTS = 6
LATER = 1e12


class Engine(ScriptedEngine):
    """An engine, with a connection to it whose client has ``threads`` decoders."""

    def __init__(self, threads: int = 2) -> None:
        super().__init__(SLOTS)
        self.hang_ups = 0
        self.connection = Connection(self.mapped, self.theirs, NUMBER, self.hung_up, threads)
        self.connection.listen()

    def hung_up(self) -> None:
        self.hang_ups += 1

    def take(self) -> int:
        slot = self.mapped.acquire(NUMBER)
        assert slot is not None
        return slot

    def submit(self) -> tuple[int, asyncio.Future[None]]:
        slot = self.take()
        return slot, self.connection.submit(slot, OutputKind.CLASSIFY, 0.0, LATER)


@asynccontextmanager
async def engine(threads: int = 2) -> AsyncIterator[Engine]:
    one = Engine(threads)
    try:
        yield one
    finally:
        one.connection.leave_engine()
        one.close()


@on_a_loop
async def test_an_engine_that_reads_late_gets_everything_once_and_in_order() -> None:
    async with engine() as one:
        sent = []
        loop = asyncio.get_running_loop()
        for _ in range(5000):  # more than a socket of any kernel takes
            slot, reply = one.submit()
            one.connection.leave(slot, None, hung_up=False)
            sent += [slot, ~slot]
            del one.connection.submitted[slot]
            one.connection.arena.release(slot)
            reply.cancel()
        found: list[int] = []

        def read() -> bool:
            found.extend(one.received())
            return len(found) >= len(sent)

        await until(read)
        assert found == sent
        for _ in range(3):
            await asyncio.sleep(0)
        # Nothing is left to write: the loop is not woken again and again.
        assert not loop.remove_writer(one.descriptor)


@on_a_loop
async def test_who_leaves_early_keeps_the_slot_until_the_reply_and_only_hang_ups_before_the_model_count() -> (
    None
):
    async with engine() as one:
        expected = 0
        for hung_up in (False, True):
            for outcome in Outcome:
                slot, _ = one.submit()
                one.connection.leave(slot, None, hung_up)
                assert one.received() == [slot, ~slot]
                assert one.arena.free == SLOTS - 1
                one.arena.record_outcome(slot, outcome)
                one.link.send([slot])
                await until(lambda: one.arena.free == SLOTS)
                expected += hung_up and outcome is Outcome.CANCELLED
                assert one.hang_ups == expected
        slot = one.take()  # never submitted
        one.connection.leave(slot, None, hung_up=True)
        assert one.hang_ups == expected + 1
        assert one.arena.free == SLOTS
        assert one.received() == []


@on_a_loop
async def test_after_the_end_all_who_wait_are_told_and_no_slot_is_given_back() -> None:
    async with engine() as one:
        (first, reply), (second, answered), (gone, left) = one.submit(), one.submit(), one.submit()
        one.connection.leave(gone, None, hung_up=True)
        one.link.send([second])
        await answered
        one.link.close()
        with pytest.raises(EngineFailed, match="held this request"):
            await reply
        assert one.connection.failed
        assert not left.done()
        one.connection.leave(first, None, hung_up=True)
        assert one.hang_ups == 0
        assert one.arena.free == SLOTS - 3
        with pytest.raises(EngineFailed, match="while it was needed"):
            one.connection.submit(second, OutputKind.CLASSIFY, 0.0, LATER)
        one.connection.fail()  # a second end changes nothing
        assert one.connection.failed
        for descriptor in (one.descriptor, one.mapped.descriptor):
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(descriptor)


@on_a_loop
async def test_nothing_is_written_after_the_end() -> None:
    async with engine() as one:
        while not one.theirs.backlog:
            slot, _ = one.submit()
            del one.connection.submitted[slot]
            one.mapped.release(slot)
        one.connection.fail()
        assert not asyncio.get_running_loop().remove_writer(one.descriptor)


@pytest.mark.parametrize("threads", [0, 1, 3])
@on_a_loop
async def test_files_go_to_the_engine_while_all_decoders_are_busy_and_it_takes_some(threads: int) -> None:
    async with engine(threads) as one:
        assert one.arena.decoding[NUMBER, Decoding.THREADS] == threads
        for room in (0, 1):
            one.arena.gauges[Gauge.FILES] = room
            for decoding in range(5):
                one.connection.decoding = decoding
                assert one.connection.takes_files() == (bool(room) and 0 < threads <= decoding)
        slot = one.take()
        writing = one.connection.send_file(slot, 2, lambda: pytest.fail("the engine has not refused it"))
        assert one.received() == [slot + FILE]
        assert not one.connection.takes_files()  # that one was the last
        one.arena.gauges[Gauge.FILES] = 9
        assert one.connection.takes_files() == (threads > 0)
        one.connection.leave_engine()
        assert not one.connection.takes_files()
        with pytest.raises(EngineFailed, match="while it decoded"):
            await writing.done


@on_a_loop
async def test_decode_times_are_summed_and_smoothed() -> None:
    async with engine() as one:
        one.measured(0.0625, 1e9)
        waits = []
        for seconds in (4.0, None, 8.0, 8.0):
            one.connection.decoding += 1
            one.connection.decoded(seconds)
            waits.append(one.connection.wait(1, 0.0) - 0.0625)
        # The first is taken as it is, of each later one a tenth; one that was given up says nothing.
        assert waits == pytest.approx([4.0, 4.0, 4.4, 4.76])
        assert list(one.arena.decoding[NUMBER, [Decoding.IMAGES, Decoding.SECONDS]]) == [3, 20.0]
        assert one.connection.decoding == 0


@on_a_loop
async def test_half_of_the_slots_are_kept_from_bulk() -> None:
    async with engine() as one:
        rooms = []
        for _ in range(SLOTS + 1):
            offers = one.connection.offer(False, 0.0), one.connection.offer(True, 0.0)
            rooms.append(tuple(offer.room for offer in offers))
            assert offers[0].backlog.images == len(rooms) - 1
            one.connection.arena.acquire(1)
        assert rooms == [(True, True)] * 3 + [(True, False)] * 3 + [(False, False)]
