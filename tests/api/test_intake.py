"""What a front-end may hold of requests: the rule, with a clock of its own, and real uploads that never end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.intake import Intake, Reservation, budget
from service.errors import IntakeFull
from tests.api.wire import on_the_services_loop, place
from tests.loops import until
from tests.uploads import png

MOST = 100


@dataclass
class World:
    now: float = 0.0
    reservations: list[Reservation] = field(default_factory=list)
    dropped: list[Reservation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.intake = Intake(MOST, lambda: self.now)

    def begin(self) -> None:
        reservation = self.intake.reserve(lambda: self.dropped.append(reservation))
        self.reservations.append(reservation)


steps = st.tuples(
    st.sampled_from(["begin", "grow", "grow", "settle", "release", "wait"]),
    st.integers(0, 7),
    st.integers(1, 60),
)


@given(st.lists(steps, max_size=60))
def test_never_more_than_the_budget_and_nothing_is_lost(history: list[tuple[str, int, int]]) -> None:
    world = World()
    for action, which, size in history:
        if action == "begin" or not world.reservations:
            world.begin()
            continue
        reservation = world.reservations[which % len(world.reservations)]
        if action == "grow":
            try:
                reservation.grow(size)
            except IntakeFull:
                reservation.release()
        elif action == "settle" and not reservation.dropped:
            reservation.settle()
        elif action == "release":
            reservation.release()
        elif action == "wait":
            world.now += size / 30
        assert world.intake.held == sum(one.size for one in world.reservations) <= MOST
    for reservation in world.reservations:
        reservation.release()
    assert world.intake.held == 0


def test_who_stalls_makes_room_and_who_moves_does_not() -> None:
    world = World()
    for _ in range(3):
        world.begin()
    stalled, moving, newcomer = world.reservations
    stalled.grow(50)
    world.now = 5.0
    moving.grow(50)
    newcomer.grow(30)
    assert world.dropped == [stalled]
    with pytest.raises(IntakeFull):
        newcomer.grow(40)
    with pytest.raises(IntakeFull):
        stalled.grow(1)
    moving.settle()  # it is being worked on: however long that takes, it stays
    world.now = 50.0
    with pytest.raises(IntakeFull):
        newcomer.grow(40)


@pytest.mark.parametrize(
    ("memory", "frontends", "wanted"),
    [(None, 4, 128 << 20), (64 << 30, 4, 128 << 20), (1 << 30, 2, 64 << 20), (64 << 20, 8, 20 << 20)],
)
def test_the_budget_follows_the_memory(memory: int | None, frontends: int, wanted: int) -> None:
    assert budget(memory, frontends, largest=10 << 20) == wanted


@on_the_services_loop
async def test_uploads_that_never_end_take_no_more_than_the_budget_and_honest_ones_get_through() -> None:
    photo = png(1)
    honest = (
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"
        % len(photo)
    )
    async with place() as here:
        intake = here.context.intake
        intake.limit = 3_000_000
        wires = []
        for _ in range(6):
            reader, writer = await asyncio.open_connection(*here.address)
            wires.append((reader, writer))
            writer.write(honest.replace(b": %d" % len(photo), b": 9000000") + photo[:33] + bytes(900_000))
        await until(lambda: intake.held > 2_000_000, 60)
        assert intake.held <= intake.limit
        answer = await here.ask(honest + photo)
        while answer.status != 200:  # as soon as those have stalled for long enough
            assert (answer.status, answer.problem()["code"]) == (503, "intake_full")
            assert int(answer.headers["retry-after"]) >= 1
            await asyncio.sleep(0.1)
            answer = await here.ask(honest + photo)
        for _, writer in wires:
            writer.transport.abort()
        await until(lambda: intake.held == 0, 60)
