"""The short way of `POST /predict` is taken, and answers what FastAPI answers.

`test_without_shortcut.py` has the other half: every test of `POST /predict` passes without the short way as well.
"""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from service.api import shortcut
from service.api.app import create_app
from tests.api.site import ready, site
from tests.loops import on_a_loop
from tests.pictures import encode, picture

PHOTO = encode(picture(), "PNG")
RAW = {"content-type": "image/png"}
#: Matches nothing, so that FastAPI gets every request.
NEVER = re.compile(rb"(?!)")

PLAIN = [
    "",
    "top_k=3",
    "activation=none",
    "activation=softmax&top_k=2",
    "top_k=1&top_k=2",
    "model=densenet121",
]
OTHER = [
    "top_k=0",
    "top_k=",
    "top_k=%33",
    "activation=relu",
    "top_k=3&",
    "&top_k=3",
    "colour=red",
    "top_k=3;",
]


@pytest.mark.parametrize(("query", "short"), [(q, True) for q in PLAIN] + [(q, False) for q in OTHER])
@on_a_loop
async def test_plain_requests_take_it_and_no_others(query: str, short: bool) -> None:
    assert await is_short("POST", f"/predict?{query}") is short


@pytest.mark.parametrize(
    ("method", "url"), [("PUT", "/predict"), ("GET", "/predict"), ("POST", "/predict/batch")]
)
@on_a_loop
async def test_other_routes_are_fastapis(method: str, url: str) -> None:
    assert not await is_short(method, url)


async def is_short(method: str, url: str) -> bool:
    """Whether FastAPI's router saw nothing of a request."""
    seen: list[Scope] = []
    with ready(None) as (_, context):
        app = create_app(context)

        async def noting(scope: Scope, receive: Receive, send: Send) -> None:
            seen.append(scope)
            await app(scope, receive, send)

        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(noting), base_url="http://service"
        ) as http:
            await http.request(method, url, content=PHOTO, headers=RAW)
    return "endpoint" not in seen[0]  # the router leaves it there


PARTS = st.one_of(
    st.tuples(st.just("top_k"), st.one_of(st.integers(-2, 12).map(str), st.text("01 9_+%.e", max_size=4))),
    st.tuples(st.just("activation"), st.sampled_from(["softmax", "none", "Softmax", "relu", "", "none "])),
    st.tuples(
        st.just("model"), st.sampled_from(["densenet121", "vgg16", "", "a/b", "%64ensenet121", "x" * 101])
    ),
    st.tuples(st.sampled_from(["top-k", "TOP_K", "", "file"]), st.just("1")),
)


@example([("top_k", "3"), ("activation", "none"), ("model", "densenet121")], "&", PHOTO)
@example([("model", "vgg16")], "&", PHOTO)
@example([("top_k", "11")], "&", PHOTO)
@settings(max_examples=40)
@given(
    parts=st.lists(PARTS, max_size=3),
    joint=st.sampled_from(["&", "&", "&", ";", "&&"]),
    body=st.sampled_from([PHOTO, PHOTO, b"no image", b""]),
)
def test_any_query_gets_fastapis_answer(parts: list[tuple[str, str]], joint: str, body: bytes) -> None:
    query = joint.join(f"{name}={value}" for name, value in parts)
    compare(query, body)


@on_a_loop
async def compare(query: str, body: bytes) -> None:
    """Asks both ways."""
    answers = []
    async with site() as here:
        for pattern in (shortcut.PLAIN, NEVER):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(shortcut, "PLAIN", pattern)
                answers.append(await here.http.post(f"/predict?{query}", content=body, headers=RAW))
    short, long = answers
    assert short.status_code == long.status_code
    assert short.headers.keys() == long.headers.keys()
    assert short.headers["content-type"] == long.headers["content-type"]
    assert without_what_differs(short.json()) == without_what_differs(long.json())


def without_what_differs(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in ("request_id", "timings_ms")}


@pytest.mark.parametrize("method", ["GET", "DELETE", "HEAD"])
@on_a_loop
async def test_a_method_that_is_not_offered_is_said(method: str) -> None:
    async with site() as here:
        answer = await here.http.request(method, "/predict")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
