"""`POST /predict` with the picture as base64 in JSON, by PUT, and without a Content-Type."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.base64_images import decode_base64
from service.errors import EmptyBody, InvalidParameter, PayloadTooLarge
from tests.api.site import site
from tests.api.test_predict import check, problem
from tests.loops import on_a_loop, until
from tests.uploads import png


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def post(http: httpx.AsyncClient, document: Any) -> httpx.Response:
    return await http.post("/predict", json=document)


@on_a_loop
async def test_json_gives_the_answer_of_the_raw_body() -> None:
    data = png(1)
    async with site() as here:
        for image in (text(data), f"data:image/png;base64,{text(data)}", base64.encodebytes(data).decode()):
            answer = await post(here.http, {"image": image, "top_k": 3})
            assert answer.status_code == 200
            check(answer.json()["predictions"], data, 3)
        logits = await post(here.http, {"image": text(data), "activation": "none"})
        assert {"logit"} == logits.json()["predictions"][0].keys() - {"class_id", "wnid", "label"}
        await until(lambda: here.free == here.engine.arena.geometry.slots)


@on_a_loop
async def test_the_body_wins_over_the_query() -> None:
    data = png(1)
    async with site() as here:
        both = await here.http.post("/predict?top_k=2", json={"image": text(data), "top_k": 4})
        query = await here.http.post("/predict?top_k=2&activation=none", json={"image": text(data)})
        assert len(both.json()["predictions"]) == 4
        assert len(query.json()["predictions"]) == 2
        assert "logit" in query.json()["predictions"][0]


@on_a_loop
async def test_put_and_no_content_type() -> None:
    data = png(1)
    async with site() as here:
        for method in ("PUT", "POST"):
            answer = await here.http.request(method, "/predict", content=data)
            assert "content-type" not in answer.request.headers
            check(answer.json()["predictions"], data)


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "empty_body"),
        (b"{", 422, "invalid_parameter"),
        (b"[]", 422, "invalid_parameter"),
        (b"{}", 422, "invalid_parameter"),
        (b'{"image": 1}', 422, "invalid_parameter"),
        (b'{"image": ""}', 400, "empty_body"),
        (b'{"image": "data:image/png;base64,"}', 400, "empty_body"),
        (b'{"image": "data:image/png,abc"}', 422, "invalid_parameter"),
        (b'{"image": "@@@@"}', 422, "invalid_parameter"),
        (b'{"image": "Z2FyYmFnZQ=="}', 415, "unsupported_media_type"),
        (b'{"image": "AAAA", "top_k": 0}', 422, "invalid_parameter"),
        (b'{"image": "AAAA", "top_k": 11}', 422, "invalid_parameter"),
        (b'{"image": "AAAA", "topk": 1}', 422, "invalid_parameter"),
        (b'{"image": "AAAA", "activation": "relu"}', 422, "invalid_parameter"),
    ],
)
@on_a_loop
async def test_what_is_wrong_is_said(content: bytes, status: int, code: str) -> None:
    async with site() as here:
        answer = await here.http.post(
            "/predict", content=content, headers={"content-type": "application/json"}
        )
        problem(answer, status, code)
        assert len(answer.json()["detail"]) < 400
        await until(lambda: here.free == here.engine.arena.geometry.slots)


@on_a_loop
async def test_the_limit_counts_decoded_bytes() -> None:
    data = png(1)
    async with site(settings={"max_upload_bytes": len(data)}) as here:
        assert (await post(here.http, {"image": text(data)})).status_code == 200
    async with site(settings={"max_upload_bytes": len(data) - 1}) as here:
        problem(await post(here.http, {"image": text(data)}), 413, "payload_too_large")
        whole = json.dumps({"image": "A" * (100_000 + 2 * len(data))}).encode()
        answer = await here.http.post("/predict", content=whole, headers={"content-type": "application/json"})
        problem(answer, 413, "payload_too_large")


@given(st.binary(min_size=1, max_size=200), st.booleans(), st.booleans(), st.sampled_from(["", "\n", "\r\n"]))
def test_every_way_to_write_base64_is_read(data: bytes, url: bool, padded: bool, line_end: str) -> None:
    encoded = (base64.urlsafe_b64encode if url else base64.b64encode)(data).decode()
    if not padded:
        encoded = encoded.rstrip("=")
    if line_end:
        encoded = "".join(encoded[at : at + 76] + line_end for at in range(0, len(encoded), 76))
    assert decode_base64(encoded, "image", 200) == data


@given(st.text(max_size=60))
def test_any_text_is_bytes_or_one_of_our_errors(content: str) -> None:
    with contextlib.suppress(InvalidParameter, EmptyBody, PayloadTooLarge):
        assert isinstance(decode_base64(content, "image", 20), bytes)
