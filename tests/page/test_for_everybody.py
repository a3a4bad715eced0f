"""The page for those who cannot see, point or wait, and on a phone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from stage import ANSWER, CAT, PHONE, TABBY, choose, expect, explained, problem, says

if TYPE_CHECKING:
    from playwright.sync_api import Page
    from stage import OpenPage

pytestmark = pytest.mark.browser


def violations(page: Page) -> list[str]:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['help']} at {[node['target'] for node in one['nodes']]}" for one in found]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [{}, PHONE], ids=["desk", "phone"])
def test_no_barrier_that_axe_knows(
    open_page: OpenPage, picture: Path, scheme: str, size: dict[str, Any]
) -> None:
    page = open_page(lambda page: explained(page), color_scheme=scheme, reduced_motion="reduce", **size)
    expect(page.locator("#model-card")).to_be_visible()
    assert violations(page) == []
    choose(page, picture)
    page.check("#map-on")
    expect(page.locator("#crop")).to_be_visible()
    assert violations(page) == []
    page.route("**/predict?*", says(problem(500, "internal", "Internal error"), 500))
    choose(page, picture)
    expect(page.get_by_role("alert")).to_be_visible()
    assert violations(page) == []


def test_a_phone_needs_no_sideways_scrolling(open_page: OpenPage, picture: Path) -> None:
    long = {
        **CAT,
        "label": "ashcan, trash can, garbage can, wastebin, ash bin, ash-bin, ashbin, dustbin, trash barrel",
    }
    page = open_page(
        lambda page: page.route("**/predict?*", says({**ANSWER, "predictions": [long, TABBY]})), **PHONE
    )
    choose(page, picture)
    expect(page.locator("#predictions li")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_on_a_phone_the_answer_is_scrolled_to(open_page: OpenPage, picture: Path) -> None:
    page = open_page(reduced_motion="reduce", **{**PHONE, "viewport": {"width": 360, "height": 480}})
    choose(page, picture)
    expect(page.locator("#predictions li").first).to_be_in_viewport()


def test_the_focus_is_not_lost(open_page: OpenPage, picture: Path) -> None:
    refused = says(problem(429, "overloaded", "Too many requests"), 429)
    page = open_page(lambda page: page.route("**/predict?*", refused, times=1))
    choose(page, picture)
    expect(page.locator("#retry")).to_be_visible()  # a key pressed before goes to the page
    page.locator("#retry").press("Enter")
    expect(page.locator("#predictions li")).to_have_count(5)
    assert page.evaluate("document.activeElement.id") == "answer-title"


def test_who_wants_no_motion_gets_none(open_page: OpenPage, picture: Path) -> None:
    page = open_page(reduced_motion="reduce")
    choose(page, picture)
    bar = page.locator("#predictions .bar div").first
    assert bar.evaluate("bar => getComputedStyle(bar).transitionDuration") == "0s"
