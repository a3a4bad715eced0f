"""The map that /explain gives, over the photo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from stage import choose, expect, explained, problem, says

if TYPE_CHECKING:
    from playwright.sync_api import Page
    from stage import OpenPage

pytestmark = pytest.mark.browser

BRIGHTEST = """canvas => {
  const { width, height } = canvas;
  const pixels = canvas.getContext("2d").getImageData(0, 0, width, height).data;
  const light = (at) => pixels[4 * at] + pixels[4 * at + 1] + pixels[4 * at + 2];
  let best = 0;
  for (let at = 0; at < width * height; at += 1) if (light(at) > light(best)) best = at;
  return [(best % width) / width, Math.floor(best / width) / height];
}"""


def test_the_map_lies_where_the_model_looked(open_page: OpenPage, picture: Path) -> None:
    asked: list[list[str]] = []
    page = open_page(lambda page: asked.append(explained(page, box=[0.25, 0.0, 0.75, 1.0])))
    choose(page, picture)
    page.get_by_role("switch", name="Show where the model looked").check()
    expect(page.locator("#crop")).to_be_visible()
    x, y = page.locator("#map").evaluate(BRIGHTEST)
    assert (x, y) == pytest.approx((5.5 / 7, 1.5 / 7), abs=0.02)
    photo, crop = page.locator("#photo").bounding_box(), page.locator("#crop").bounding_box()
    assert photo
    assert crop
    assert crop["x"] == pytest.approx(photo["x"] + photo["width"] / 4, abs=1)
    assert crop["width"] == pytest.approx(photo["width"] / 2, abs=1)
    expect(page.locator("#map-text")).to_contain_text("Egyptian cat")
    assert [url.split("?")[1] for url in asked[0]] == ["class_id=285"]


def test_without_a_box_the_map_lies_over_the_centre_crop(open_page: OpenPage, picture: Path) -> None:
    page = open_page(lambda page: explained(page))
    choose(page, picture)
    page.check("#map-on")
    expect(page.locator("#crop")).to_be_visible()
    photo, crop = page.locator("#photo").bounding_box(), page.locator("#crop").bounding_box()
    assert photo
    assert crop
    assert crop["width"] == pytest.approx(crop["height"], abs=1)
    assert crop["height"] <= photo["height"] + 1
    assert crop["x"] + crop["width"] / 2 == pytest.approx(photo["x"] + photo["width"] / 2, abs=1)


@pytest.mark.parametrize(
    ("preprocessing", "box"),
    [
        ({"fit": "resize-crop", "resize": 256, "crop": [224, 224]}, [0.28125, 0.0625, 0.71875, 0.9375]),
        ({"fit": "resize-crop", "resize": [256, 448], "crop": [224, 224]}, [0.25, 0.0625, 0.75, 0.9375]),
        ({"fit": "resize-crop", "resize": None, "crop": [100, 100]}, [0.375, 0.25, 0.625, 0.75]),
        ({"fit": "crop-resize", "resize": None, "crop": [224, 224]}, [0.25, 0, 0.75, 1]),
        ({"fit": "stretch", "resize": None, "crop": [224, 224]}, [0, 0, 1, 1]),
        (None, [0.28125, 0.0625, 0.71875, 0.9375]),
    ],
)
def test_every_preprocessing_keeps_its_part(
    open_page: OpenPage, preprocessing: dict[str, Any] | None, box: list[float]
) -> None:
    call = "async (spec) => (await import('/page/heatmap.js')).seenBox({}, spec, 400, 200)"
    assert open_page().evaluate(call, preprocessing) == pytest.approx(box)


def test_another_class_can_be_looked_for(open_page: OpenPage, picture: Path) -> None:
    asked: list[list[str]] = []
    page = open_page(lambda page: asked.append(explained(page)))
    choose(page, picture)
    tabby = page.get_by_role("button", name="tabby, tabby cat")
    tabby.click()
    expect(page.locator("#map-text")).to_contain_text("tabby")
    expect(tabby).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Egyptian cat").click()
    expect(page.locator("#map-text")).to_contain_text("Egyptian cat")
    tabby.click()
    expect(page.locator("#map-text")).to_contain_text("tabby")
    assert [url.split("class_id=")[1] for url in asked[0]] == ["281", "285"]  # an answer is asked for once


def test_the_slider_sets_the_opacity(open_page: OpenPage, picture: Path) -> None:
    page = open_page(lambda page: explained(page))
    choose(page, picture)
    page.check("#map-on")
    page.get_by_label("Opacity").fill("25")
    assert page.locator("#map").evaluate("canvas => canvas.style.opacity") == "0.25"
    page.uncheck("#map-on")
    expect(page.locator("#crop")).to_be_hidden()


def test_no_map_is_offered_by_a_service_without_one(open_page: OpenPage, picture: Path) -> None:
    page = open_page(lambda page: page.route("**/openapi.json", says({"paths": {"/predict": {"post": {}}}})))
    choose(page, picture)
    expect(page.locator("#predictions li")).to_have_count(5)
    expect(page.locator("#explain")).to_be_hidden()
    expect(page.locator("#predictions button")).to_have_count(0)


def test_a_map_that_fails_leaves_the_answer(open_page: OpenPage, picture: Path) -> None:
    def fail(page: Page) -> None:
        explained(page)
        page.route("**/explain?*", says(problem(504, "deadline_exceeded", "Deadline exceeded"), 504))

    page = open_page(fail)
    choose(page, picture)
    page.check("#map-on")
    expect(page.locator("#map-text")).to_contain_text("It took too long: detail of deadline_exceeded")
    expect(page.locator("#predictions li")).to_have_count(2)
