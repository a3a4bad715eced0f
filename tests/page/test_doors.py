"""The page and Swagger UI against real servers that want a key, and behind a proxy that strips a prefix."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT, serving
from proxy import stripping
from stage import choose, expect

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request

pytestmark = pytest.mark.browser

KEY = "the-key-of-the-test"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server with an API key."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "keys").write_text(f"{KEY}\n")
    with serving(
        folder / "log.txt", "--weights", "demo", "--api-keys-file", str(folder / "keys"), "--frontends", "1"
    ) as url:
        yield url


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(30_000)
    yield page
    context.close()


def test_the_page_of_a_guarded_server_asks_for_the_key(page: Page, guarded: str) -> None:
    page.goto(f"{guarded}/")
    expect(page.locator("#key-form")).to_be_visible()
    expect(page.locator("#sample-list button").first).to_be_visible()
    page.get_by_label("API key", exact=True).fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_text("This key was not accepted")).to_be_visible()
    page.get_by_label("API key", exact=True).fill(KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#model-card")).to_be_visible()
    choose(page, ROOT / "samples/coffee.jpg")
    expect(page.locator("#predictions li")).to_have_count(5)
    page.reload()
    expect(page.locator("#model-card")).to_be_visible()
    expect(page.locator("#key-form")).to_be_hidden()


def test_a_picture_that_came_before_the_key_is_sent_after_it(page: Page, guarded: str) -> None:
    page.goto(f"{guarded}/")
    page.set_input_files("#file", ROOT / "samples/coffee.jpg")
    page.get_by_label("API key", exact=True).fill(KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#predictions li")).to_have_count(5)


def ask_in_swagger(page: Page, photo: Path) -> int:
    """The status of a `POST /predict` that Swagger UI sends."""
    operation = page.locator("#operations-predict-predict")
    operation.locator(".opblock-summary-control").click()
    operation.get_by_role("button", name="Try it out").click()
    operation.locator("input[type=file]").set_input_files(photo)
    with page.expect_response(lambda answer: "/predict" in answer.url) as received:
        operation.get_by_role("button", name="Execute").click()
    return int(received.value.status)


def test_swagger_offers_to_authorize_and_then_asks_with_the_key(page: Page, guarded: str) -> None:
    page.goto(f"{guarded}/docs")
    photo = ROOT / "samples/coffee.jpg"
    page.get_by_role("button", name="Authorize").first.click()
    page.get_by_label("auth-bearer-value").fill(KEY)
    page.locator(".auth-container").first.get_by_role("button", name="Apply credentials").click()
    page.get_by_role("button", name="Close").first.click()
    assert ask_in_swagger(page, photo) == 200


@pytest.mark.parametrize("prefix", ["/classify", "/a/b"])
def test_behind_a_proxy_that_strips_a_prefix_all_stays_in_it(page: Page, guarded: str, prefix: str) -> None:
    with stripping(prefix, guarded) as inside:
        outside: list[str] = []

        def note(asked: Request) -> None:
            if not asked.url.startswith((f"{inside}/", "blob:", "data:")):
                outside.append(asked.url)

        page.on("request", note)
        page.goto(f"{inside}/")
        page.get_by_label("API key", exact=True).fill(KEY)
        page.keyboard.press("Enter")
        choose(page, ROOT / "samples/coffee.jpg")
        expect(page.locator("#predictions li")).to_have_count(5)
        page.goto(f"{inside}/docs")
        page.get_by_role("button", name="Authorize").first.click()
        page.get_by_label("auth-bearer-value").fill(KEY)
        page.locator(".auth-container").first.get_by_role("button", name="Apply credentials").click()
        page.get_by_role("button", name="Close").first.click()
        assert ask_in_swagger(page, ROOT / "samples/coffee.jpg") == 200
        assert outside == []
