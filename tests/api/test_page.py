"""`/` and what belongs to it: types, headers, samples. How it looks and behaves: tests/page."""

from __future__ import annotations

from urllib.parse import urljoin

import pytest

from service.host.samples import samples
from tests.api.site import site
from tests.loops import on_a_loop

POLICY = {
    "default-src 'self'",
    "img-src 'self' blob: data:",
    "script-src 'self'",
    "style-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
}


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html"),
        ("/page/app.js", "text/javascript"),
        ("/page/style.css", "text/css"),
        ("/page/favicon.svg", "image/svg+xml"),
        ("/page/samples.json", "application/json"),
        ("/page/limits.json", "application/json"),
        ("/page/samples/coffee.jpg", "image/jpeg"),
    ],
)
@on_a_loop
async def test_types_and_headers(path: str, media_type: str) -> None:
    async with site() as here:
        answer = await here.http.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"].split(";")[0] == media_type
        assert set(answer.headers["content-security-policy"].split("; ")) == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        head = await here.http.head(path)
        assert (head.status_code, head.content) == (200, b"")


@on_a_loop
async def test_what_the_browser_has_is_not_sent_again() -> None:
    async with site() as here:
        etag = (await here.http.get("/page/app.js")).headers["etag"]
        assert (await here.http.get("/page/app.js", headers={"if-none-match": etag})).status_code == 304


@on_a_loop
async def test_the_samples_are_listed_and_are_their_bytes() -> None:
    async with site() as here:
        listed = (await here.http.get("/page/samples.json")).json()
        assert [entry["name"] for entry in listed] == [name for name, _ in samples()]
        for entry, (_, path) in zip(listed, samples(), strict=True):
            url = urljoin("http://service/page/samples.json", entry["url"])
            assert (await here.http.get(url)).content == path.read_bytes()


@on_a_loop
async def test_the_limits_are_those_of_the_settings() -> None:
    given = {"max_upload_bytes": 1000, "max_image_pixels": 2000, "max_images_per_request": 3}
    async with site(settings=given) as here:
        assert (await here.http.get("/page/limits.json")).json() == given


@pytest.mark.parametrize(
    "path",
    [
        "/page/nothing.js",
        "/page/",
        "/page/samples/nothing.jpg",
        "/page/..%2fapp.py",
        "/page/samples/..%2fLICENSE",
    ],
)
@on_a_loop
async def test_nothing_else_is_served(path: str) -> None:
    async with site() as here:
        answer = await here.http.get(path)
        assert answer.status_code == 404
        assert answer.json()["code"] == "not_found"
