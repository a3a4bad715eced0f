"""What a front-end shows to the shadow, and that no client waits for it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from service.api.served import Served
from service.api.shadow import Shadow
from service.observability.card import ModelCard
from service.preprocess import Preprocessing
from service.shared.board import Board
from tests.api.site import CARD, CLASSES, PREPROCESSING, Site, site
from tests.engine.harness import Engine
from tests.loops import on_a_loop
from tests.uploads import png


def shade(here: Site, other: Engine, card: ModelCard = CARD, share: float = 1.0) -> Shadow:
    """Gives the site a shadow in another engine."""
    context = here.context
    context.shadow = Shadow(context.models, context.metrics, share)
    context.models.add(Served(Board.shadow, 0, card, other.connect(), context.recipe(card)))
    return context.shadow


async def until_idle(shadow: Shadow) -> None:
    while shadow._tasks:
        await asyncio.sleep(0.01)


@on_a_loop
async def test_clients_are_answered_while_the_shadow_is_stuck_and_what_it_has_no_room_for_it_misses() -> None:
    async with site() as here:
        with Engine("thread", slots=4) as other:
            shadow = shade(here, other)
            other.runner.may_run.clear()
            for seed in range(5):
                assert (await here.http.post("/predict", files={"file": png(seed)})).status_code == 200
            assert here.free == here.engine.arena.geometry.slots
            assert shadow.tally.missed == 3  # bulk work has half of the places
            other.runner.may_run.set()
            await until_idle(shadow)
            assert (shadow.tally.compared, shadow.tally.agreed, shadow.tally.difference) == (2, 2, 0.0)
            assert other.arena.free == 4


@on_a_loop
async def test_the_share_is_kept_and_batches_count_as_their_images() -> None:
    async with site() as here:
        with Engine("thread", slots=16) as other:
            shadow = shade(here, other, share=0.25)
            files = [("files", png(seed)) for seed in range(8)]
            assert (await here.http.post("/predict/batch", files=files)).status_code == 200
            for seed in range(8):
                await here.http.post("/predict", files={"file": png(seed)})
            await until_idle(shadow)
            assert shadow.tally.compared == 4
            await here.http.post("/features", files={"file": png(1)})  # has no class to agree on
            assert not shadow._tasks


@pytest.mark.parametrize(
    "card",
    [
        replace(CARD, classes=CLASSES[:5]),
        replace(CARD, classes=()),
        replace(CARD, preprocessing=Preprocessing(resize=9, crop=PREPROCESSING.crop)),
    ],
)
@on_a_loop
async def test_what_cannot_be_compared_is_not_shown(card: ModelCard) -> None:
    async with site() as here:
        with Engine("thread") as other:
            shadow = shade(here, other, card)
            assert (await here.http.post("/predict", files={"file": png(1)})).status_code == 200
            assert not shadow._tasks
            assert not other.runner.batches


@on_a_loop
async def test_a_dead_shadow_and_one_that_answers_nonsense_are_misses() -> None:
    async with site() as here:
        with Engine("thread") as other:
            shadow = shade(here, other)
            other.runner.not_a_number = True
            assert (await here.http.post("/predict", files={"file": png(1)})).status_code == 200
            await until_idle(shadow)
            assert (shadow.tally.compared, shadow.tally.missed) == (0, 1)
            served = here.context.models.shadow
            assert served is not None
            served.client.detach()
            assert (await here.http.post("/predict", files={"file": png(1)})).status_code == 200
            assert shadow.tally.missed == 2
            names = [one["name"] for one in (await here.http.get("/models/loaded")).json()]
            assert names == ["densenet121"]
            assert (await here.http.get("/readyz")).status_code == 200
