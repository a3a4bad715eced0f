"""`/features`: the engine is asked for the right thing, among others' images, and the shape is right."""

from __future__ import annotations

import asyncio
import gzip
import io
import time
from dataclasses import replace

import numpy as np
import pytest
from fastapi import Request
from starlette.responses import Response

from service.api.compression import packed, takes_gzip
from service.shared.outputs import OutputKind
from tests.api.site import CARD, logits_of, site
from tests.api.test_predict import check, problem
from tests.loops import on_a_loop, until
from tests.uploads import png


@pytest.mark.parametrize(
    ("query", "task", "shape"),
    [
        ("", OutputKind.FEATURES_AVG, (2,)),
        ("?pooling=avg", OutputKind.FEATURES_AVG, (2,)),
        ("?pooling=max", OutputKind.FEATURES_MAX, (2,)),
        ("?pooling=none", OutputKind.FEATURES_MAP, (2, 2, 2)),
    ],
)
@on_a_loop
async def test_json_and_npy_hold_the_same_array(query: str, task: OutputKind, shape: tuple[int, ...]) -> None:
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
        here.become(replace(CARD, classes=()))
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


@on_a_loop
async def test_a_large_answer_is_packed_for_who_asks() -> None:
    async with site() as here:
        context = here.context
        big = Response(b"0.125," * 2000, media_type="application/json")

        async def packed_for(accept: str) -> Response:
            scope = {"type": "http", "headers": [(b"accept-encoding", accept.encode())]}
            copy = Response(bytes(big.body), media_type="application/json")
            return await packed(Request(scope), context, copy, time.monotonic() + 60)

        plain, small = await packed_for("br"), await packed_for("gzip")
        assert plain.body == big.body
        assert "content-encoding" not in plain.headers
        assert gzip.decompress(bytes(small.body)) == big.body
        assert int(small.headers["content-length"]) == len(small.body) < len(plain.body)
        assert plain.headers["vary"] == small.headers["vary"] == "Accept-Encoding"
        answer = await here.http.post("/features", content=png(1), headers={"accept-encoding": "gzip"})
        assert (answer.status_code, answer.headers["vary"]) == (200, "Accept-Encoding")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", False),
        ("gzip", True),
        ("GZIP;q=0.5, br", True),
        ("br, *;q=0.1", True),
        ("*, gzip;q=0", False),
        ("gzip;q=0, *", False),
        ("identity", False),
        ("xgzip", False),
        ("gzip;q=x", False),
    ],
)
def test_accept_encoding_is_read_as_the_standard_has_it(header: str, expected: bool) -> None:
    assert takes_gzip(header) is expected


@on_a_loop
async def test_a_checkpoint_says_what_features_pool_by_unless_the_request_does() -> None:
    async with site() as here:
        here.become(replace(CARD, feature_pooling="max"))
        own = await here.http.post("/features", content=png(1))
        asked = await here.http.post("/features?pooling=avg", content=png(1))
        assert (own.json()["pooling"], asked.json()["pooling"]) == ("max", "avg")
