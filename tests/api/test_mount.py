"""The service under a proxy's prefix, which the proxy strips or leaves."""

from __future__ import annotations

import pytest

from service.api.keys import Keys
from service.errors import ConfigurationError
from service.settings import load
from tests.api.site import site
from tests.loops import on_a_loop
from tests.uploads import png

PREFIX = "/team/classify"


@on_a_loop
async def test_both_kinds_of_proxy_reach_the_same_routes() -> None:
    async with site(settings={"root_path": PREFIX}) as here:
        for before in ("", PREFIX):
            for path in ("/", "/model", "/readyz", "/docs", "/page/app.js", "/openapi.json"):
                assert (await here.http.get(before + path)).status_code == 200, before + path
            answer = await here.http.post(f"{before}/predict?top_k=2", files={"file": png(1)})
            assert len(answer.json()["predictions"]) == 2
        assert (await here.http.get(f"{PREFIX}ier/model")).status_code == 404
        schema = (await here.http.get("/openapi.json")).json()
        assert schema["servers"] == [{"url": PREFIX}]


@on_a_loop
async def test_without_the_setting_the_schema_is_relative_to_itself() -> None:
    async with site() as here:
        schema = (await here.http.get("/openapi.json")).json()
        assert schema["servers"] == [{"url": "."}]


@on_a_loop
async def test_the_prefix_is_no_way_round_the_keys(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("a-key\n")
    async with site(settings={"root_path": PREFIX}, keys=Keys(file)) as here:
        assert (await here.http.get(f"{PREFIX}/model")).status_code == 401
        assert (await here.http.get(f"{PREFIX}/")).status_code == 200
        assert (await here.http.get(f"{PREFIX}/model", headers={"x-api-key": "a-key"})).status_code == 200


@pytest.mark.parametrize("text", ["classify", "https://a.example/x", "/a b", "/a/../b?", "//a"])
def test_what_is_no_prefix_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="begins with /"):
        load(root_path=text)


@pytest.mark.parametrize(("text", "prefix"), [("/", None), ("", None), ("/a/", "/a"), ("/a/b", "/a/b")])
def test_a_slash_at_the_end_says_nothing(text: str, prefix: str | None) -> None:
    assert load(root_path=text).root_path == prefix
