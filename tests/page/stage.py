"""What the page's tests share: words put in the service's mouth, and a hand that chooses files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright; tests/page/run.sh brings it"
)
expect = playwright.expect
#: Milliseconds: a network of densenet121's size on a machine that does other work.
expect.set_options(timeout=30_000)

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

    OpenPage = Callable[..., Page]

PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
CAT = {"class_id": 285, "wnid": "n02124075", "label": "Egyptian cat", "probability": 0.8312}
TABBY = {"class_id": 281, "wnid": "n02123045", "label": "tabby, tabby cat", "probability": 0.00004}
ANSWER = {
    "request_id": "from-the-test",
    "model": "densenet121",
    "weights": "IMAGENET1K_V1",
    "predictions": [CAT, TABBY],
    "timings_ms": {"decode": 2.0, "queue": 1.0, "inference": 5.0, "total": 10.0},
}
GRID = [[0.1] * 7 for _ in range(7)]
GRID[1][5] = 4.0  # the hot cell: upper right
GRID[6][0] = -9.0  # evidence against


def says(body: object, status: int = 200, **headers: str) -> Callable[[Route], None]:
    """A route's handler that answers with this JSON; a problem from 400 on."""
    kind = "application/json" if status < 400 else "application/problem+json"
    return lambda route: route.fulfill(
        status=status, body=json.dumps(body), content_type=kind, headers=headers
    )


def problem(status: int, code: str, title: str) -> dict[str, Any]:
    return {
        "title": title,
        "status": status,
        "code": code,
        "detail": f"detail of {code}",
        "request_id": "of-the-error",
    }


def choose(page: Page, *files: Path) -> None:
    expect(page.locator("#state")).to_have_attribute("data-state", "ready")
    page.set_input_files("#file", files)


def labels(page: Page) -> list[str]:
    return page.locator("#predictions .label").all_inner_texts()


def explained(page: Page, **more: object) -> list[str]:
    """Makes the service one that explains; the addresses that are asked are returned."""
    asked: list[str] = []
    page.route("**/openapi.json", says({"paths": {"/explain": {"post": {}}}}))
    page.route("**/predict?*", says(ANSWER))

    def explain(route: Route) -> None:
        asked.append(route.request.url)
        says({"grid": GRID, **more})(route)

    page.route("**/explain?*", explain)
    return asked
