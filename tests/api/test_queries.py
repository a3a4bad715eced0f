"""A query parameter that a route does not know is refused, with the one that was meant."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.options.nearest import nearest
from tests.api.site import site
from tests.loops import on_a_loop
from tests.uploads import png

POSTS = {
    "/predict": {"top_k", "activation"},
    "/predict/batch": {"top_k", "activation"},
    "/features": {"pooling"},
    "/explain": {"class_id"},
}


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/predict?topk=3", "top_k"),
        ("/predict?TOP_K=3", "top_k"),
        ("/predict?top-k=3", "top_k"),
        ("/predict?top_k=3&activaton=none", "activation"),
        ("/predict/batch?k_top=3", "top_k"),
        ("/features?poling=max", "pooling"),
        ("/explain?classid=3", "class_id"),
    ],
)
@on_a_loop
async def test_a_misspelled_parameter_is_named_with_the_right_one(path: str, meant: str) -> None:
    async with site() as here:
        free = here.free
        answer = await here.http.post(path, files={"file": png(1)})
        assert answer.status_code == 422
        document = answer.json()
        assert document["code"] == "invalid_parameter"
        assert f"'{meant}'" in document["detail"] or meant in document["detail"].split()
        assert here.free == free


@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=12))
@settings(max_examples=15)
def test_no_other_name_is_taken(name: str) -> None:
    @on_a_loop
    async def ask() -> None:
        async with site() as here:
            for path, known in POSTS.items():
                answer = await here.http.post(path, params={name: "1"}, files={"file": png(1)})
                if name not in known:
                    assert answer.status_code == 422, path
                    assert answer.json()["code"] == "invalid_parameter"

    ask()


@on_a_loop
async def test_what_has_no_parameters_says_so_and_probes_take_any() -> None:
    async with site() as here:
        for path in ("/model", "/models", "/labels"):
            answer = await here.http.get(f"{path}?verbose=1")
            assert answer.status_code == 422
            assert "this route has none" in answer.json()["detail"]
        v2 = await here.http.get("/v2/models/densenet121?verbose=1")
        assert (v2.status_code, list(v2.json())) == (422, ["error"])
        for path in ("/livez", "/readyz", "/healthz", "/metrics", "/", "/page/app.js", "/v2/health/ready"):
            assert (await here.http.get(f"{path}?verbose=1")).status_code == 200, path


def test_nearest_knows_neither_case_nor_dashes_and_does_not_guess_wildly() -> None:
    known = ("top_k", "activation", "max_batch_size")
    assert nearest("Top-K", known) == "top_k"
    assert nearest("MAX_BATCHSIZE", known) == "max_batch_size"
    assert nearest("zzz", known) is None
