"""Whatever is asked of any route: no defect, no answer out of proportion, and an event loop that goes on turning."""

from __future__ import annotations

import asyncio
import base64
import gc
import gzip
import json
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.api.site import CARD, Site, site
from tests.uploads import png

INFER = "/v2/models/densenet121/infer"
#: Bytes of an error: a few lines, and at most one of what was sent.
ERROR = 1500
#: Bytes of an answer besides its numbers, and for each number: 25 as JSON, the rest for its label.
HEAD, NUMBER = 200_000, 150
#: Images of a request, and outputs that /v2 may be asked for.
IMAGES, OUTPUTS = 64, 16
#: Seconds of CPU between two turns of the loop: twice what is promised, as machines differ. By the clock, whatever else
#: the machine does would count as well.
SILENCE = 0.2

HUGE = 10**400
texts = st.text(max_size=20) | st.sampled_from(
    [
        "x" * 20_000,
        "\u2028" * 5000,
        "9" * 5000,
        "²",
        "-1",
        "1e999",
        "٣",
        "\0",
        "image",
        "pixels",
        "logits",
        "probabilities",
    ]
)
numbers = st.integers() | st.sampled_from([HUGE, -HUGE, 2**31, 2**63, 10**4299, 0, 1, 0.5, True, None, "1"])
values = st.recursive(numbers | texts, lambda inner: st.lists(inner, max_size=4), max_leaves=20)
PICTURE = base64.b64encode(png(1)).decode()

parameters = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "binary_data_size": numbers,
        "classification": numbers,
        "binary_data": st.booleans(),
        "timeout": numbers,
        "shared_memory_region": texts,
        "priority": numbers,
    },
)
inputs = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["image", "pixels"]) | texts,
        "datatype": st.sampled_from(["BYTES", "UINT8"]) | texts,
        "shape": st.lists(numbers, max_size=5) | st.sampled_from([[1], [64], [1, 6, 5, 3]]),
    },
    optional={
        "data": st.just([PICTURE] * 64) | st.just([PICTURE]) | st.lists(values, max_size=5),
        "parameters": parameters,
    },
)
outputs = st.fixed_dictionaries(
    {"name": st.sampled_from(["logits", "probabilities"]) | texts}, optional={"parameters": parameters}
)
one_picture = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [PICTURE]}
documents = st.fixed_dictionaries(
    {"inputs": st.just([one_picture]) | st.lists(inputs, max_size=3)},
    optional={
        "id": texts,
        "parameters": parameters,
        "outputs": st.lists(outputs, max_size=4)
        | st.builds(lambda output, times: [output] * times, outputs, st.sampled_from([2, 17])),
    },
)
headers = st.fixed_dictionaries(
    {},
    optional={
        name: texts.map(
            lambda text: text.encode("utf-8", "replace").replace(b"\0", b"").replace(b"\n", b"")[:60_000]
        )
        for name in (
            "x-request-timeout-ms",
            "inference-header-content-length",
            "x-request-id",
            "content-type",
            "content-encoding",
            "content-length-wanted",
            "accept",
        )
    },
)
paths = st.sampled_from(
    (
        f"/predict /predict/batch /features /explain {INFER} /v2 /labels /model /models /metrics / /docs /openapi.json "
        "/healthz /nothing /predict/ // /version"
    ).split()
)
queries = st.dictionaries(
    st.sampled_from(["top_k", "activation", "pooling", "class_id", "unknown"]),
    texts.map(lambda text: text[:2000])
    | numbers.filter(lambda number: number not in (HUGE, -HUGE, 10**4299)),
    max_size=2,
)


@contextmanager
def running() -> Iterator[tuple[asyncio.Runner, Site]]:
    """A service for as many requests as there are examples."""
    with asyncio.Runner() as runner:
        place = site(slots=64)
        here = runner.run(place.__aenter__())
        # Of what other tests have left, a collection on the way would count as the service's work.
        gc.collect()
        gc.freeze()
        try:
            yield runner, here
        finally:
            gc.unfreeze()
            runner.run(place.__aexit__(None, None, None))


@asynccontextmanager
async def a_loop_that_turns() -> Any:
    """Fails if all threads together compute for `SILENCE` between two turns of the loop."""
    longest = 0.0

    async def turn() -> None:
        nonlocal longest
        last = time.process_time()
        while True:
            await asyncio.sleep(0.001)
            now = time.process_time()
            longest, last = max(longest, now - last), now

    turning = asyncio.create_task(turn())
    await asyncio.sleep(0)
    yield
    await asyncio.sleep(0)
    turning.cancel()
    assert longest <= SILENCE


def proportionate(answer: httpx.Response) -> None:
    assert answer.status_code != 500, answer.text[:1000]
    if answer.status_code >= 400:
        assert len(answer.content) <= ERROR
    else:
        assert len(answer.content) <= HEAD + IMAGES * OUTPUTS * len(CARD.classes) * NUMBER


def test_any_request_to_any_route_gets_an_answer_in_proportion() -> None:
    with running() as (runner, here):

        async def ask(method: str, path: str, **what: Any) -> None:
            async with a_loop_that_turns():
                proportionate(await here.http.request(method, path, **what))

        @given(
            st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "PUT"]),
            paths,
            queries,
            headers,
            st.binary(max_size=200),
        )
        @settings(max_examples=20)
        def anything(
            method: str, path: str, query: dict[str, Any], more: dict[str, Any], content: bytes
        ) -> None:
            content = png(1) if content[:1] < b"\x80" else content
            runner.run(ask(method, path, params=query, headers=more, content=content))

        @given(documents, headers, st.booleans())
        @settings(max_examples=30)
        def infer(document: Any, more: dict[str, Any], packed: bool) -> None:
            content = json.dumps(document).encode()
            more.pop("content-encoding", None)
            if packed:
                content, more = gzip.compress(content, 1), {**more, "content-encoding": b"gzip"}
            runner.run(ask("POST", INFER, headers=more, content=content))

        anything()
        infer()


def _pixels(values: str) -> bytes:
    head = '{"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 6, 5, 3], "data": ['
    return f"{head}{values}]}}]}}".encode()


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"inputs": [one_picture], "outputs": [{"name": "logits"}] * 60_000}).encode(),
        _pixels("0," * 3_000_000 + "0"),
        _pixels("[]," * 2_000_000 + "0"),
        _pixels('{"a":0},' * 1_000_000 + "0"),
        _pixels("[" * 1_000_000 + "]" * 1_000_000),
        _pixels("9" * 5_000_000),
        _pixels('"' + "A" * 9_000_000 + '"'),
        b" " * 9_000_000,
    ],
    ids=["outputs", "numbers", "lists", "objects", "nested", "digits", "string", "spaces"],
)
@pytest.mark.parametrize("path", [INFER, "/predict"])
def test_large_json_holds_up_nobody(path: str, content: bytes) -> None:
    with running() as (runner, here):

        async def ask() -> None:
            async with a_loop_that_turns():
                answer = await here.http.post(
                    path, content=content, headers={"content-type": "application/json"}
                )
                assert 400 <= answer.status_code < 500
                proportionate(answer)

        runner.run(ask())


@pytest.mark.parametrize(
    ("header", "value"),
    [("inference-header-content-length", "²"), ("inference-header-content-length", "9" * 5000)]
    + [("x-request-timeout-ms", value) for value in ("²", "1_0", "nan", "inf", "-1", "0", "9" * 5000, "٣")],
)
def test_numbers_in_headers_have_one_error(header: str, value: str) -> None:
    with running() as (runner, here):
        content = json.dumps(
            {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [PICTURE]}]}
        )
        answer = runner.run(here.http.post(INFER, content=content, headers={header.encode(): value.encode()}))
        assert answer.status_code == 422
        assert header.split("-")[0] in answer.json()["error"].lower()
        proportionate(answer)
