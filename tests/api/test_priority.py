"""Bulk requests over HTTP: who is bulk, what they may take, and that nobody else is refused for them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from service.api.keys import Keys
from service.errors import Overloaded
from tests.api.site import site
from tests.api.test_predict import check, problem
from tests.loops import on_a_loop, until
from tests.uploads import png

BULK = {"x-priority": "bulk"}


def in_bulk(arena: object) -> int:
    return int(arena.records["bulk"][arena.owners != 0].sum())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("headers", "settings", "expected"),
    [
        ({}, {}, 0),
        ({"x-priority": "interactive"}, {}, 0),
        (BULK, {}, 1),
        ({"x-priority": " Bulk "}, {}, 1),
        ({}, {"bulk_routes": "/predict"}, 1),
        ({"x-priority": "interactive"}, {"bulk_routes": "/predict, /features"}, 1),
        ({}, {"bulk_routes": "/predict/batch"}, 0),
    ],
)
@on_a_loop
async def test_who_is_bulk(headers: dict[str, str], settings: dict[str, str], expected: int) -> None:
    data = png(1)
    async with site(settings=settings, delay=0.3) as here:
        arena = here.engine.arena
        task = asyncio.create_task(here.http.post("/predict", content=data, headers=headers))
        await until(lambda: arena.free < arena.geometry.slots)
        assert in_bulk(arena) == expected
        answer = await task
        check(answer.json()["predictions"], data)
        arrived = int(arena.arrivals.sum())
        assert arrived == 1 - expected  # an autoscaler follows those who cannot wait


@on_a_loop
async def test_a_key_can_make_its_requests_bulk(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nfor-people\nfor-jobs bulk\n")
    keys = Keys(file)
    assert not keys.admit(b"for-jobs bulk")
    assert keys.any() == b"for-people"
    async with site(keys=keys, delay=0.3) as here:
        arena = here.engine.arena
        for key, expected in (("for-people", 0), ("for-jobs", 1)):
            headers = {"x-api-key": key}
            task = asyncio.create_task(here.http.post("/predict", content=png(1), headers=headers))
            await until(lambda: arena.free < arena.geometry.slots)
            assert in_bulk(arena) == expected
            assert (await task).status_code == 200
            await until(lambda: arena.free == arena.geometry.slots)


@on_a_loop
async def test_a_priority_that_is_none_is_said() -> None:
    async with site() as here:
        answer = await here.http.post("/predict", content=png(1), headers={"x-priority": "urgent"})
        problem(answer, 422, "invalid_parameter")
        assert "X-Priority" in answer.json()["detail"]


@on_a_loop
async def test_bulk_takes_half_of_the_places_and_the_others_the_rest() -> None:
    async with site() as here:
        client, slots = here.client, here.free
        bulk = [client.acquire(bulk=True) for _ in range(slots // 2)]
        with pytest.raises(Overloaded):
            client.acquire(bulk=True)
        refused = await here.http.post("/predict", content=png(1), headers=BULK)
        problem(refused, 429, "overloaded")
        answered = await here.http.post("/predict", content=png(1))
        assert answered.status_code == 200
        others = [client.acquire() for _ in range(here.free)]
        for slot in (*bulk, *others):
            slot.__exit__(None, None, None)
        assert here.free == slots


@on_a_loop
async def test_a_batch_of_many_in_bulk_is_answered_whole() -> None:
    images = [png(seed) for seed in range(20)]
    async with site() as here:
        files = [("files", image) for image in images]
        answer = await here.http.post("/predict/batch", files=files, headers=BULK)
        for result, image in zip(answer.json()["results"], images, strict=True):
            check(result["predictions"], image)
        await until(lambda: here.free == here.engine.arena.geometry.slots)
