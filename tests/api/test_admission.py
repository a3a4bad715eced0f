"""A request between its admission and its answer, on a virtual clock: who is counted, watched, cancelled and freed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect

from service.api.admission import Admission
from service.api.context import Context
from service.api.request_state import RequestState
from service.engine.arena import Outcome
from service.engine.client import Slot
from service.errors import InvalidImage, Overloaded
from service.observability.metrics import Metrics
from service.settings import Settings
from service.shared.status import Status
from tests.api.site import CARD, serve
from tests.engine.scripted import RESULTS, Desk, ScriptedEngine, desk
from tests.engine.virtual import Decodes
from tests.fakes import fingerprint

SLOTS = 4


class Client:
    """A request whose client sends messages when told to."""

    def __init__(self) -> None:
        self.asked = 0
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def sends(self, kind: str) -> None:
        self._messages.put_nowait({"type": kind})

    async def receive(self) -> dict[str, Any]:
        self.asked += 1
        return await self._messages.get()


class Place:
    """A front-end in front of one scripted engine."""

    def __init__(self, here: Desk) -> None:
        self.here = here
        self.engine: ScriptedEngine = here.attach(SLOTS)
        self.decoders = Decodes()
        self.context = Context(Settings(), Metrics.declare(), self.decoders, status=Status("ready"))
        serve(self.context, CARD, here.client)
        self.client = Client()
        self.state = RequestState("an-id", started=time.monotonic(), due=here.clock.now + 60)

    def admission(self, watched: bool = True) -> Admission:
        return Admission(self.context, self.state, None, self.client if watched else None)  # type: ignore[arg-type]

    def decode(self) -> None:
        while self.decoders.jobs:
            self.decoders.jobs.pop(0)()
        self.here.loop.turn()

    def answer(self) -> list[int]:
        """The engine answers what it has, and what left early comes back."""
        slots = [slot for slot in self.engine.received() if slot >= 0]
        for slot in slots:
            self.engine.answer(slot)
        self.here.loop.turn()
        return slots


@pytest.fixture(name="place")
def _place() -> Iterator[Place]:
    with desk() as here:
        yield Place(here)


def level(value: int) -> Any:
    def fill(pixels: NDArray[np.uint8]) -> None:
        if value == 255:
            raise InvalidImage("damaged")
        pixels[...] = value

    return fill


def answer_to(value: int) -> NDArray[np.float32]:
    return fingerprint(np.full((2, 2, 3), value, np.uint8), RESULTS)


async def one_image(admission: Admission) -> Any:
    async def body() -> bytes:
        return b"a photo"

    async with admission:
        assert await admission.receive(body()) == b"a photo"
        return (await admission.infer(level(3), RESULTS)).result


@pytest.mark.parametrize("bulk", [False, True])
def test_an_image_is_counted_unless_it_is_bulk_and_its_stages_are_noted(place: Place, bulk: bool) -> None:
    place.state.bulk = bulk
    place.state.started -= 5.0
    task = place.here.begin(one_image(place.admission()))
    place.decode()
    assert place.engine.arena.is_bulk(0) is bulk
    assert place.answer() == [0]
    assert (task.result() == answer_to(3)).all()
    assert place.engine.arena.arrivals.sum() == (not bulk)
    assert 5.0 <= place.state.stages["receive"] < 65.0
    assert 0.0 <= place.state.stages["decode"] < 60.0
    assert place.state.stages["inference"] == 0.5
    assert place.state.batch == 7
    assert place.engine.arena.free == SLOTS


def test_each_image_s_stages_are_observed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    observed: list[tuple[str, float]] = []

    class Stage:
        def __init__(self, name: str) -> None:
            self.name = name

        def observe(self, seconds: float) -> None:
            observed.append((self.name, seconds))

    monkeypatch.setattr(place.context.metrics.stage_duration, "labels", Stage)
    task = place.here.begin(one_image(place.admission()))
    place.decode()
    place.answer()
    assert task.done()
    assert [stage for stage, _ in observed] == ["decode", "queue", "inference"]
    assert dict(observed)["inference"] == 0.5


def test_a_request_that_cannot_be_served_is_counted_and_refused_before_its_body(place: Place) -> None:
    taken = [place.here.client.acquire() for _ in range(SLOTS)]

    async def refused() -> None:
        async with place.admission():
            raise AssertionError("it was let in")

    with pytest.raises(Overloaded):
        place.here.begin(refused()).result()
    assert place.engine.arena.arrivals.sum() == 1
    for slot in taken:
        slot.__exit__(None, None, None)
    place.engine.measured(2.0, 1.0)
    place.here.client.acquire(place.here.clock.now + 1.0)
    place.state.due = place.here.clock.now + 1.0  # behind the other, and a pass takes two seconds
    with pytest.raises(Overloaded):
        place.here.begin(refused()).result()


def test_a_client_is_watched_after_a_moment_and_its_end_cancels_the_request(place: Place) -> None:
    async def ask() -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            await one_image(place.admission())
        finally:
            assert task.cancelling() == 0  # whoever awaits the task later is not cancelled for it

    task = place.here.begin(ask())
    place.here.wait(0.009)
    assert place.client.asked == 0
    place.here.wait(0.002)
    assert place.client.asked == 1
    place.client.sends("http.request")  # a late piece of the body is no end
    place.here.loop.turn()
    assert place.client.asked == 2
    assert not place.state.gone
    place.client.sends("http.disconnect")
    place.here.loop.turn()
    with pytest.raises(ClientDisconnect):
        task.result()
    assert place.state.gone
    assert place.here.hang_ups == 1
    place.decode()
    assert place.engine.arena.free == SLOTS


@pytest.mark.parametrize("seconds", [0.0, 0.02])
def test_nobody_is_watched_after_the_answer(place: Place, seconds: float) -> None:
    task = place.here.begin(one_image(place.admission()))
    place.here.wait(seconds)
    place.decode()
    place.answer()
    assert (task.result() == answer_to(3)).all()
    asked = place.client.asked
    assert asked == (seconds > 0)
    place.here.wait(1.0)
    assert place.client.asked == asked
    assert asyncio.all_tasks(place.here.loop) == set()


def test_without_a_request_there_is_nobody_to_watch(place: Place) -> None:
    task = place.here.begin(one_image(place.admission(watched=False)))
    place.here.wait(1.0)
    place.decode()
    place.answer()
    assert (task.result() == answer_to(3)).all()
    assert place.client.asked == 0


def test_another_cancellation_is_passed_on(place: Place) -> None:
    task = place.here.begin(one_image(place.admission()))
    place.here.wait(0.02)
    task.cancel()
    place.here.loop.turn()
    assert task.cancelled()
    assert not place.state.gone


async def several(admission: Admission, levels: list[int]) -> NDArray[np.float32]:
    async with admission:
        return await admission.logits([level(value) for value in levels])


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_logits_are_those_of_every_image_in_order(place: Place, count: int) -> None:
    levels = list(range(10, 10 + count))
    task = place.here.begin(several(place.admission(), levels))
    for _ in range(count):
        place.decode()
        for slot in reversed(place.answer()):
            assert 0 <= slot < SLOTS
        place.here.wait(0.0051)  # who waits for a slot looks again
    assert (task.result() == np.stack([answer_to(value) for value in levels])).all()
    assert place.engine.arena.arrivals.sum() == count
    assert place.engine.arena.free == SLOTS


def test_images_of_bulk_are_not_counted(place: Place) -> None:
    place.state.bulk = True
    task = place.here.begin(several(place.admission(), [1, 2]))
    place.decode()
    place.answer()
    assert task.result().shape == (2, RESULTS)
    assert place.engine.arena.arrivals.sum() == 0


def test_the_first_error_is_raised_itself_with_the_images_number_and_ends_all_others(place: Place) -> None:
    task = place.here.begin(several(place.admission(), [10, 255, 11, 12, 13, 14]))
    place.decode()
    with pytest.raises(InvalidImage, match=r"^image 1: damaged$"):
        task.result()
    for slot in place.engine.received():
        if slot < 0:
            place.engine.answer(~slot, Outcome.CANCELLED)
    place.here.wait(0.0051)
    assert place.engine.arena.free == SLOTS
    assert asyncio.all_tasks(place.here.loop) == set()


def test_the_error_of_a_single_image_has_no_number(place: Place) -> None:
    task = place.here.begin(several(place.admission(), [255]))
    place.decode()
    with pytest.raises(InvalidImage, match=r"^damaged$"):
        task.result()


def test_items_get_slots_of_their_own_and_the_first_slot_is_free_whatever_happens(place: Place) -> None:
    admission = place.admission()
    seen: list[tuple[str, int]] = []
    may_end = asyncio.Event()

    async def note(item: str, slot: Slot) -> int:
        seen.append((item, slot.number))
        await may_end.wait()
        return slot.number

    async def ask(items: list[str]) -> list[int]:
        async with admission:
            return await admission.infer_each(items, note)

    task = place.here.begin(ask(["a", "b", "c"]))
    assert [item for item, _ in seen] == ["a", "b", "c"]
    assert len({number for _, number in seen}) == 3
    may_end.set()
    place.here.loop.turn()
    assert task.result() == [number for _, number in seen]
    assert place.engine.arena.free == SLOTS
    cancelled = place.here.loop.create_task(ask(["d"]))
    place.here.loop.call_soon(cancelled.cancel)  # after it has its slot, before the item's task begins
    place.here.loop.turn()
    assert cancelled.cancelled()
    assert place.engine.arena.free == SLOTS
