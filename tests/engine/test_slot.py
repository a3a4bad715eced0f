"""One image's slot, between a decoder and engines that answer, refuse, or die, on a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from service.engine.arena import FILE, Gauge, Outcome
from service.engine.slot import Slot
from service.errors import DeadlineExceeded, EngineFailed, InternalError
from service.shared.outputs import OutputKind
from tests.engine.scripted import RESULTS, Desk, desk
from tests.engine.virtual import Decodes
from tests.fakes import fingerprint

LATER = 60.0
#: Another output than the default.
KIND = max(OutputKind)


@pytest.fixture(name="here")
def _here() -> Iterator[Desk]:
    with desk() as made:
        yield made


class Photo:
    """Work with a file of ``size`` bytes. A decoder here fills the pixels with 7."""

    def __init__(self, size: int) -> None:
        self.data = bytes(range(1, size + 1))

    def __call__(self, pixels: NDArray[np.uint8]) -> None:
        pixels[...] = 7

    def file(self) -> bytes:
        return self.data


def taken(here: Desk, bulk: bool = False) -> Slot:
    slot = here.client.acquire(here.clock.now + LATER, bulk)
    slot.pixels[...] = np.arange(slot.pixels.size).reshape(slot.pixels.shape) * 3
    return slot


def test_an_answer_is_what_the_record_says_and_a_copy(here: Desk) -> None:
    engine = here.attach()
    with taken(here) as slot:
        submitted = here.clock.now
        task = here.begin(slot.answer(submitted + LATER, 4, KIND))
        assert engine.arena.wanted(slot.number) == KIND
        assert engine.arena.deadline(slot.number) == submitted + LATER
        engine.answer(slot.number, started=submitted + 2.0)
        here.loop.turn()
        answer = task.result()
        expected = fingerprint(slot.pixels, RESULTS)[:4]
        engine.arena.results[...] = -1.0
    assert (answer.result == expected).all()
    assert here.loop.timers == 0
    assert (answer.queue, answer.inference, answer.finished) == (2.0, 0.5, submitted + 2.5)
    assert (answer.batch, answer.batch_size) == (7, 3)
    assert engine.arena.free == 2
    assert here.hang_ups == here.again == 0


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (Outcome.EXPIRED, DeadlineExceeded),
        (Outcome.FAILED, InternalError),
        (Outcome.CANCELLED, InternalError),
    ],
)
def test_a_slot_that_comes_back_without_an_answer_is_an_error(
    here: Desk, outcome: Outcome, error: type[Exception]
) -> None:
    engine = here.attach()
    with taken(here) as slot:
        task = here.begin(slot.answer(here.clock.now + LATER, RESULTS))
        engine.answer(slot.number, outcome)
        here.loop.turn()
        with pytest.raises(error):
            task.result()


def test_a_silent_engine_is_left_at_the_deadline_and_keeps_the_slot_until_it_replies(here: Desk) -> None:
    engine = here.attach()

    async def ask() -> None:
        with taken(here) as slot:
            await slot.answer(here.clock.now + 1.0, RESULTS)

    task = here.begin(ask())
    here.wait(0.99)
    assert not task.done()
    here.wait(0.01)
    with pytest.raises(DeadlineExceeded, match="model's answer"):
        task.result()
    assert engine.received() == [0, ~0]
    assert engine.arena.free == 1
    engine.answer(0, Outcome.CANCELLED)
    here.loop.turn()
    assert engine.arena.free == 2
    assert here.hang_ups == 0  # the service was late, not the client gone


def test_a_slot_is_left_once_however_often_it_is_left(here: Desk) -> None:
    engine = here.attach(slots=1)
    with taken(here) as slot:
        pass
    assert engine.arena.free == 1
    with taken(here) as another:
        assert another.number == slot.number
        slot.__exit__(asyncio.CancelledError, None, None)
        assert engine.arena.free == 0
    assert here.hang_ups == 0


@pytest.mark.parametrize("error", [asyncio.CancelledError, KeyError])
def test_only_a_cancellation_is_a_hang_up(here: Desk, error: type[BaseException]) -> None:
    here.attach()
    with pytest.raises(error), taken(here):
        raise error
    assert here.hang_ups == (error is asyncio.CancelledError)


@pytest.mark.parametrize("size", [12, 13])
def test_a_file_that_fits_into_the_slot_is_the_engine_s_while_no_decoder_is_free(
    here: Desk, size: int
) -> None:
    engine = here.attach()
    engine.arena.gauges[Gauge.FILES] = 1
    (connection,) = here.client.connections
    connection.decoding = 1
    decoders = Decodes()
    slot = taken(here)
    task = here.begin(slot.fill(decoders, Photo(size), here.clock.now + LATER))
    if size > slot.pixels.size:
        assert connection.decoding == 2
        decoders.jobs.pop()()
        here.loop.turn()
        assert connection.decoding == 1
        assert (slot.pixels == 7).all()
    else:
        assert engine.received() == [slot.number + FILE]
        assert engine.arena.file(slot.number) == size
        assert bytes(engine.arena.pixels[slot.number].reshape(-1)[:size]) == Photo(size).data
        engine.arena.record_outcome(slot.number, Outcome.OK)
        engine.link.send([slot.number + FILE])
        here.loop.turn()
    assert task.done()
    assert here.loop.timers == 0
    assert decoders.jobs == []


def test_a_decode_has_until_the_deadline_and_its_slot_is_free_after_the_last_byte(here: Desk) -> None:
    engine = here.attach()
    decoders = Decodes()

    async def ask() -> None:
        with taken(here) as slot:
            await slot.fill(decoders, Photo(1), here.clock.now + 1.0)

    task = here.begin(ask())
    here.wait(0.99)
    assert not task.done()
    here.wait(0.01)
    with pytest.raises(DeadlineExceeded, match="decoded"):
        task.result()
    decoders.jobs.pop()()  # it was not begun: nothing is written any more
    here.loop.turn()
    assert engine.arena.free == 2
    (connection,) = here.client.connections
    assert connection.decoding == 0


@pytest.mark.parametrize("bulk", [False, True])
@pytest.mark.parametrize("deaths", [1, 2])
def test_an_image_goes_to_one_more_engine_with_its_pixels_and_its_class(
    here: Desk, bulk: bool, deaths: int, caplog: pytest.LogCaptureFixture
) -> None:
    engines = [here.attach() for _ in range(3)]
    slot = taken(here, bulk)
    pixels, deadline = slot.pixels.copy(), here.clock.now + LATER
    task = here.begin(slot.answer(deadline, RESULTS))
    for death in range(deaths):
        assert not task.done()
        (holder,) = [engine for engine in engines if engine.received()]
        assert here.again == death
        engines.remove(holder)
        here.kill(holder)
    holders = [engine for engine in engines if engine.received()]
    if deaths == 2:
        assert holders == []
        with pytest.raises(EngineFailed, match="two engines"):
            task.result()
        assert "two engines died" in caplog.text
        assert here.again == 1
        return
    (holder,) = holders
    assert (holder.arena.pixels[slot.number] == pixels).all()
    assert holder.arena.is_bulk(slot.number) is bulk
    assert holder.arena.deadline(slot.number) == deadline
    holder.answer(slot.number)
    here.loop.turn()
    assert (task.result().result == fingerprint(pixels, RESULTS)).all()
    assert here.again == 1


@pytest.mark.parametrize("deaths", [1, 2])
def test_an_engine_that_dies_with_a_file_counts_as_one_that_had_the_image(here: Desk, deaths: int) -> None:
    first, second = here.attach(), here.attach()
    for engine in (first, second):
        engine.arena.gauges[Gauge.FILES] = 1
    for connection in here.client.connections:
        connection.decoding = 1
    decoders = Decodes()
    slot = taken(here)
    task = here.begin(slot.fill(decoders, Photo(2), here.clock.now + LATER))
    (holder,) = [engine for engine in (first, second) if engine.received()]
    here.kill(holder)
    decoders.jobs.pop()()
    here.loop.turn()
    assert task.done()
    answer = here.begin(slot.answer(here.clock.now + LATER, RESULTS))
    other = first if holder is second else second
    assert len(other.received()) == 1
    if deaths == 2:
        here.kill(other)
        with pytest.raises(EngineFailed, match="two engines"):
            answer.result()
    else:
        other.answer(slot.number)
        here.loop.turn()
        assert (answer.result().result == fingerprint(slot.pixels, RESULTS)).all()


def test_a_slot_knows_whose_it_is(here: Desk) -> None:
    here.attach()
    slot = taken(here)
    with desk() as elsewhere:
        assert slot.belongs_to(here.client)
        assert not slot.belongs_to(elsewhere.client)
    slot.record_admission(here.clock.now + 5.0, bulk=True)
    arena = here.engines[0].arena
    assert (arena.deadline(slot.number), arena.is_bulk(slot.number)) == (here.clock.now + 5.0, True)
