"""The short cut answers what FastAPI answers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.site import site
from tests.loops import on_a_loop
from tests.pictures import encode, picture

PHOTO = encode(picture(), "PNG")
RAW = {"content-type": "image/png"}

#: Each with the same request as FastAPI takes it: an ampersand at the end leads there.
QUERIES = [
    "",
    "top_k=3",
    "activation=none",
    "activation=softmax&top_k=2",
    "top_k=1&top_k=2",
    "top_k=11",
    "top_k=999999",
    "top_k=0",
    "top_k=-1",
    "top_k=%33",
    "top_k=",
    "top_k=many",
    "activation=sigmoid",
    "top_k=3&",
    "&top_k=3",
]


def _without_what_differs(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in ("request_id", "timings_ms")}


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("body", [PHOTO, b"no image", b""])
@on_a_loop
async def test_it_answers_what_fastapi_answers(query: str, body: bytes) -> None:
    async with site() as here:
        short = await here.http.post(f"/predict?{query}", content=body, headers=RAW)
        long = await here.http.post(f"/predict?{query}&", content=body, headers=RAW)
    assert short.status_code == long.status_code
    assert short.headers.keys() == long.headers.keys()
    assert short.headers["content-type"] == long.headers["content-type"]
    assert _without_what_differs(short.json()) == _without_what_differs(long.json())


@pytest.mark.parametrize("method", ["GET", "DELETE", "HEAD"])
@on_a_loop
async def test_other_methods_are_fastapis(method: str) -> None:
    async with site() as here:
        answer = await here.http.request(method, "/predict")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
