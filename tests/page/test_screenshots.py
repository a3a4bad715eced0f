"""Pictures of the page for the README and for looking: written to ``IMAGENET_PAGE_SHOTS``, else skipped.

``IMAGENET_PAGE_PHOTO`` is the photo in them; the default is the first sample of the server, else a drawn square.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

DESK = {"viewport": {"width": 1200, "height": 900}}
PHONE = {
    "viewport": {"width": 360, "height": 1600},
    "is_mobile": True,
    "has_touch": True,
    "device_scale_factor": 2,
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_screenshot(
    open_page: Callable[..., Page],
    picture: Path,
    scheme: str,
    size: dict[str, Any],
    request: pytest.FixtureRequest,
) -> None:
    folder = os.environ.get("IMAGENET_PAGE_SHOTS")
    if not folder:
        pytest.skip("IMAGENET_PAGE_SHOTS names no folder")
    page = open_page(color_scheme=scheme, reduced_motion="reduce", **size)
    page.wait_for_selector("#model-card", state="visible")
    bring(page, picture)
    page.wait_for_selector("#predictions li")
    if page.is_visible("#explain"):
        page.check("#map-on")
        page.wait_for_selector("#crop", state="visible")
    page.wait_for_load_state("networkidle")
    Path(folder).mkdir(parents=True, exist_ok=True)
    page.screenshot(path=Path(folder) / f"page-{request.node.callspec.id}.png", full_page=size is DESK)


def bring(page: Page, picture: Path) -> None:
    if photo := os.environ.get("IMAGENET_PAGE_PHOTO"):
        page.set_input_files("#file", photo)
    elif page.is_visible(".sample"):
        page.click(".sample >> nth=0")
    else:
        page.set_input_files("#file", picture)
