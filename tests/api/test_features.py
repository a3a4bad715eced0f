"""`/features`: the engine is asked for the right thing, among others' images, and the shape is right."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace

import numpy as np
import pytest

from service.task import Task
from tests.api.site import CARD, logits_of, site
from tests.api.test_predict import check, problem
from tests.loops import on_a_loop, until
from tests.uploads import png


@pytest.mark.parametrize(
    ("query", "task", "shape"),
    [
        ("", Task.FEATURES_AVG, (2,)),
        ("?pooling=avg", Task.FEATURES_AVG, (2,)),
        ("?pooling=max", Task.FEATURES_MAX, (2,)),
        ("?pooling=none", Task.FEATURES_MAP, (2, 2, 2)),
    ],
)
@on_a_loop
async def test_json_and_npy_hold_the_same_array(query: str, task: Task, shape: tuple[int, ...]) -> None:
    data = png(1)
    wanted = (logits_of(data)[: np.prod(shape)] + 1000 * task).reshape(shape)
    async with site() as here:
        answer = await here.http.post("/features" + query, files={"file": data})
        document = answer.json()
        assert document["shape"] == list(shape)
        assert (np.array(document["features"]) == wanted).all()
        raw = {"content-type": "image/png", "accept": "application/x-npy"}
        array = await here.http.post("/features" + query, content=data, headers=raw)
        assert array.headers["content-type"] == "application/x-npy"
        loaded = np.load(io.BytesIO(array.content), allow_pickle=False)
        assert loaded.dtype == np.float32
        assert (loaded == wanted).all()


@on_a_loop
async def test_features_and_predictions_share_a_batch() -> None:
    async with site(max_batch_size=8) as here:
        here.engine.runner.may_run.clear()
        first = asyncio.create_task(here.http.post("/predict", files={"file": png(0)}))
        await until(lambda: len(here.engine.runner.batches) == 1)
        routes = ["/predict", "/features", "/predict", "/features?pooling=none"]
        rest = [asyncio.create_task(here.http.post(route, files={"file": png(1)})) for route in routes]
        await until(lambda: here.free == here.engine.arena.geometry.slots - 5)
        await asyncio.sleep(0.1)
        here.engine.runner.may_run.set()
        await first
        answers = [await one for one in rest]
        assert len(here.engine.runner.batches) == 2
        check(answers[0].json()["predictions"], png(1))
        assert answers[1].json()["features"][0] > 1000
        assert answers[3].json()["shape"] == [2, 2, 2]


@on_a_loop
async def test_a_checkpoint_without_a_head_has_features_and_never_guesses() -> None:
    async with site() as here:
        here.context.card = replace(CARD, classes=())
        assert (await here.http.post("/features", files={"file": png(1)})).status_code == 200
        for route, field in (("/predict", "file"), ("/predict/batch", "files")):
            answer = await here.http.post(route, files={field: png(1)})
            problem(answer, 404, "not_found")
            assert "/features" in answer.json()["detail"]


@on_a_loop
async def test_a_wrong_pooling_is_named() -> None:
    async with site() as here:
        problem(
            await here.http.post("/features?pooling=sum", files={"file": png(1)}), 422, "invalid_parameter"
        )
