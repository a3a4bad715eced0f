"""A few hundred damaged files through decode and through HTTP; `make fuzz` has the ten thousand."""

from __future__ import annotations

import contextlib
import tracemalloc

import pytest

from service.api.errors import status_of
from service.errors import RequestError
from service.images.decode import IMAGE_HEADER_BYTES, decode, judge_header
from tests.api.site import site
from tests.fuzz import corpus
from tests.loops import on_a_loop

#: For decode, and of these the part that goes over HTTP.
FILES, OVER_HTTP = 700, 250
MAX_PIXELS = 1_000_000
STATUSES = {200, 400, 413, 415, 422}


def outcome(data: bytes) -> RequestError | None:
    try:
        assert decode(data, max_pixels=MAX_PIXELS).mode == "RGB"
    except RequestError as error:
        return error
    return None


@pytest.mark.parametrize("name", sorted(corpus.whole()))
def test_the_whole_files_are_whole(name: str) -> None:
    assert outcome(corpus.whole()[name]) is None


def test_damage_is_an_image_or_our_own_error() -> None:
    seen = set()
    for _, data in corpus.damaged(FILES):
        refused = outcome(data)
        seen.add(refused and refused.code)
    assert seen >= {None, "invalid_image", "unsupported_media_type", "image_too_large"}


@pytest.mark.parametrize("name", corpus.FORMATS)
def test_the_dimensions_in_the_first_bytes_are_those_of_the_image(name: str) -> None:
    data = corpus.whole()[name.lower()]
    judge_header(data[:IMAGE_HEADER_BYTES], 37 * 23)
    with contextlib.suppress(RequestError):
        judge_header(data[:IMAGE_HEADER_BYTES], 37 * 23 - 1)
        pytest.fail("the header's pixels were not counted")


@on_a_loop
async def test_damage_is_answered_by_the_contract_and_leaves_nothing_taken() -> None:
    async with site(settings={"max_image_pixels": MAX_PIXELS}) as here:
        for number, (name, data) in enumerate(corpus.damaged(OVER_HTTP, seed=1)):
            if number % 2:
                answer = await here.http.post("/predict", files={"file": ("wrong.jpg", data)})
            else:
                answer = await here.http.post(
                    "/predict", content=data, headers={"content-type": "image/x-anything"}
                )
            assert answer.status_code in STATUSES, (name, answer.text)
            refused = outcome(data)
            assert answer.status_code == (200 if refused is None else status_of(refused)), (name, answer.text)
        assert here.free == here.engine.arena.geometry.slots


@pytest.mark.parametrize("name", [name for name in corpus.extreme() if "share their bytes" in name])
def test_bytes_that_many_tags_claim_are_not_copied_for_each(name: str) -> None:
    data = corpus.extreme()[name]
    tracemalloc.start()
    with contextlib.suppress(RequestError):
        decode(data, max_pixels=1_000_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * len(data)
