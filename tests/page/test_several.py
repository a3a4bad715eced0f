"""Several pictures at once, limits that are known beforehand, and a service that goes and comes back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import png
from stage import ANSWER, CAT, choose, expect, problem, says

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route
    from stage import OpenPage

pytestmark = pytest.mark.browser


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Twelve small pictures, and one file that is none."""
    paths = []
    for number in range(12):
        path = tmp_path / f"picture {number}.png"
        path.write_bytes(png(20, 10, lambda x, y, n=number: (20 * n, x, y)))
        paths.append(path)
    poem = tmp_path / "poem.png"
    poem.write_text("no picture")
    return [*paths[:5], poem, *paths[5:]]


def test_several_pictures_become_a_table(open_page: OpenPage, pictures: list[Path]) -> None:
    page = open_page()
    choose(page, *pictures)
    rows = page.locator("#several tr")
    expect(rows).to_have_count(13)
    expect(page.locator("#several-text")).to_contain_text("13 pictures.")
    expect(rows.locator(".number")).to_contain_text(["%"] * 5 + [""] + ["%"] * 7)
    expect(rows.nth(5)).to_contain_text("Not a picture that can be read")
    expect(page.locator("#curl")).to_contain_text("predict/batch")
    rows.nth(3).get_by_role("button").click()
    expect(page.locator("#predictions li")).to_have_count(5)
    expect(page.locator("#caption")).to_contain_text("picture 3.png")
    page.get_by_role("button", name="Back to all 13 pictures").click()
    expect(rows.locator(".number")).to_contain_text(["%"] * 5 + [""] + ["%"] * 7)


def test_a_portion_keeps_the_limits(open_page: OpenPage) -> None:
    page = open_page()
    portions = page.evaluate("""async () => {
      const { portions } = await import("/page/batch.js");
      const files = [10, 10, 90, 5, 101, 60, 50, 1].map((size) => ({ size }));
      const limits = { max_upload_bytes: 100, max_images_per_request: 3 };
      return [portions(files, limits), portions(files, {}), portions([], {})];
    }""")
    assert portions == [[[0, 1], [2, 3], [5], [6, 7]], [[0, 1, 2, 3, 4, 5, 6, 7]], []]


def with_limit(size: int) -> Callable[[Page], object]:
    limits = {"max_upload_bytes": size, "max_image_pixels": 50_000_000, "max_images_per_request": 64}
    return lambda page: page.route("**/page/limits.json", says(limits))


def test_a_file_past_the_limit_is_not_sent(open_page: OpenPage, picture: Path, pictures: list[Path]) -> None:
    sent: list[str] = []
    page = open_page(with_limit(2048))
    page.on("request", lambda asked: sent.append(asked.url) if "/predict" in asked.url else None)
    large = picture.with_name("large.png")
    large.write_bytes(picture.read_bytes() + b"\0" * 4096)
    expect(page.locator("#limit")).to_have_text(", up to 2 KiB")
    choose(page, large)
    box = page.get_by_role("alert")
    expect(box).to_contain_text("Larger than 2 KiB")
    expect(box).to_contain_text("max_upload_bytes")
    expect(page.locator("#retry")).to_be_hidden()
    assert sent == []
    choose(page, pictures[0], large)
    expect(page.locator("#several tr").nth(1)).to_contain_text("Larger than 2 KiB")
    expect(page.locator("#several tr").nth(0)).to_contain_text("%")


def test_another_picture_dropped_on_the_first_replaces_it(open_page: OpenPage, picture: Path) -> None:
    page = open_page(lambda page: page.route("**/predict?*", says(ANSWER)))
    choose(page, picture)
    expect(page.locator("#caption")).to_contain_text("light square.png")
    page.evaluate(
        """([bytes]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], "second.png", { type: "image/png" }));
          const event = new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
          document.querySelector("#photo").dispatchEvent(event);
        }""",
        [list(picture.read_bytes())],
    )
    expect(page.locator("#caption")).to_contain_text("second.png")


@pytest.mark.parametrize("code", ["not_ready", "engine_failed", "draining"])
def test_a_picture_that_the_service_lost_is_sent_again_by_itself(
    open_page: OpenPage, picture: Path, code: str
) -> None:
    page = open_page(lambda page: page.route("**/predict?*", says(problem(503, code, "Gone"), 503), times=1))
    choose(page, picture)
    expect(page.locator("#predictions li")).to_have_count(5)


def test_a_lost_server_is_waited_for_and_asked_again(open_page: OpenPage, picture: Path) -> None:
    gone = {"now": False}

    def reach(route: Route) -> None:
        route.abort("connectionrefused") if gone["now"] else route.continue_()

    page = open_page(lambda page: page.route("**/*", reach))
    expect(page.locator("#state")).to_have_attribute("data-state", "ready")
    gone["now"] = True
    page.set_input_files("#file", picture)
    expect(page.get_by_role("alert")).to_contain_text("asked again by itself")
    expect(page.locator("#state")).to_have_attribute("data-state", "unreachable")
    gone["now"] = False
    expect(page.locator("#predictions li")).to_have_count(5)


def test_a_picture_that_ends_the_model_each_time_is_not_sent_for_ever(
    open_page: OpenPage, picture: Path
) -> None:
    asked: list[str] = []

    def fail(route: Route) -> None:
        asked.append(route.request.url)
        says(problem(503, "engine_failed", "Gone"), 503)(route)

    page = open_page(lambda page: page.route("**/predict?*", fail))
    choose(page, picture)
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    assert len(asked) == 4


def test_an_idle_page_notices_that_the_service_has_gone(open_page: OpenPage) -> None:
    page = open_page()
    expect(page.locator("#state")).to_have_attribute("data-state", "ready")
    page.route("**/readyz", lambda route: route.abort("connectionrefused"))
    expect(page.locator("#state")).to_have_attribute("data-state", "unreachable")
    page.unroute("**/readyz")
    expect(page.locator("#state")).to_have_attribute("data-state", "ready")


@pytest.mark.parametrize(
    ("box", "framed"),
    [
        ([0.0, 0.0, 1.0, 1.0], False),
        ([0.0, -0.25, 1.0, 1.25], False),
        ([0.1, 0.0, 0.9, 1.0], True),
        ([-0.1, 0.2, 1.1, 0.8], True),
    ],
)
def test_the_frame_is_spoken_of_where_it_can_be_seen(
    open_page: OpenPage, picture: Path, box: list[float], framed: bool
) -> None:
    explanation = {**CAT, "request_id": "x", "method": "cam", "grid": [[1.0, 0.0], [0.5, 0.2]], "box": box}

    def prepare(page: Page) -> None:
        page.route("**/predict?*", says(ANSWER))
        page.route("**/explain?*", says(explanation))

    page = open_page(prepare)
    choose(page, picture)
    page.check("#map-on")
    expect(page.locator("#map-text")).to_contain_text("What spoke for")
    assert ("frame" in page.locator("#map-text").inner_text()) is framed


def test_sentences_are_not_run_together(open_page: OpenPage) -> None:
    def load(page: Page) -> None:
        page.route("**/readyz", says(problem(503, "not_ready", "Not ready"), 503))
        page.route("**/healthz", says({"state": "warming", "detail": "first batches on cpu"}))

    page = open_page(load)
    expect(page.locator("#waiting-text")).to_contain_text("First batches on cpu. The model runs")
