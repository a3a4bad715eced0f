"""What large images may take is one sum for all front-ends, whoever takes and returns it in whatever order."""

from __future__ import annotations

import os
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.arena import Arena, Decoding, Gauge, Geometry
from service.engine.client import EngineClient
from service.engine.decode_memory import DecodeMemory
from service.shared.transport import Link, socket_pair
from tests.loops import on_a_loop

LIMIT = 100
FRONT_ENDS = (1, 2)
STEPS = st.lists(st.tuples(st.sampled_from(FRONT_ENDS), st.integers(1, 120), st.booleans()), max_size=12)


def arena() -> Arena:
    made = Arena.create(Geometry(4, 2, 2, 3, results=1))
    made.gauges[Gauge.DECODE_MEMORY] = LIMIT
    return made


def attach(client: EngineClient, to: Arena, number: int) -> Callable[[], None]:
    """Joins a front-end to an engine; what is returned ends the engine."""
    ours, theirs = socket_pair()
    client.attach(Arena(os.dup(to.descriptor), to.geometry), Link(ours), number)
    return theirs.close


@given(STEPS)
@settings(max_examples=40)
def test_the_sum_of_all_front_ends_never_passes_the_limit(steps: list[tuple[int, int, bool]]) -> None:
    @on_a_loop
    async def run() -> None:
        shared = arena()
        memory = {number: DecodeMemory() for number in FRONT_ENDS}
        clients = {number: EngineClient(memory=memory[number]) for number in FRONT_ENDS}
        ends = [attach(clients[number], shared, number) for number in FRONT_ENDS]
        held: dict[int, list[int]] = {number: [] for number in FRONT_ENDS}
        for number, size, give_back in steps:
            if give_back and held[number]:
                memory[number].release(held[number].pop())
            else:
                fits = sum(map(sum, held.values())) + size <= LIMIT
                assert memory[number].acquire(size) is fits
                held[number] += [size] * fits
            for each in FRONT_ENDS:
                assert shared.decoding[each, Decoding.MEMORY] == sum(held[each])
        late = arena()  # another engine's row shows the same
        ends.append(attach(clients[1], late, 1))
        assert late.decoding[1, Decoding.MEMORY] == sum(held[1])
        for client in clients.values():
            client.detach()
        for end in ends:
            end()

    run()


@on_a_loop
async def test_threads_have_their_own_memory_and_without_an_engine_all_is_allowed() -> None:
    memory = DecodeMemory(thread_memory=20)
    assert memory.acquire(10**9)
    memory.release(10**9)
    shared = arena()
    client = EngineClient(threads=2, memory=memory)
    end = attach(client, shared, 1)
    assert memory.memory_limit == LIMIT - 2 * 20
    assert not memory.acquire(61)
    assert memory.acquire(60)
    client.detach()
    end()
    assert memory.acquire(10**9)


@on_a_loop
async def test_an_engine_that_has_set_no_limit_has_none() -> None:
    memory = DecodeMemory(thread_memory=20)
    client = EngineClient(threads=2, memory=memory)
    end = attach(client, Arena.create(Geometry(4, 2, 2, 3, results=1)), 1)
    assert memory.acquire(10**15)
    client.detach()
    end()


@on_a_loop
async def test_busy_seconds_are_sums_since_the_start_and_engines_get_what_came_since_they_joined() -> None:
    memory, first, second = DecodeMemory(), arena(), arena()
    client = EngineClient(memory=memory)
    ends = [attach(client, first, 1)]
    memory.record_busy(2.0)
    memory.record_busy(5.0)
    assert first.decoding[1, Decoding.BUSY] == 5.0
    ends.append(attach(client, second, 1))
    memory.record_busy(9.0)
    assert (first.decoding[1, Decoding.BUSY], second.decoding[1, Decoding.BUSY]) == (9.0, 4.0)
    client.detach()
    memory.record_busy(10.0)
    assert first.decoding[1, Decoding.BUSY] == 9.0
    for end in ends:
        end()
