"""`make release`: what it writes, and what it refuses before it writes anything."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

import service
from tests.deploy.scripts import ROOT, load

DAY = datetime.date(2026, 12, 1)


release = load("release")
LINES = st.lists(st.sampled_from(["- one", "- two", "### Added", "", "  more of it"]), max_size=8)


@given(LINES, LINES)
def test_a_section_moves_whole_and_leaves_an_empty_one(unreleased: list[str], older: list[str]) -> None:
    text = "\n".join(
        ["# Changelog", "", "## Unreleased", *unreleased, "", "## 0.1.0 (2026-01-01)", *older, ""]
    )
    if not any(line.startswith("- ") for line in unreleased):
        with pytest.raises(release.Refused, match="nothing"):
            release.released(text, "0.2.0", DAY)
        return
    new, notes = release.released(text, "0.2.0", DAY)
    assert new.replace("\n## 0.2.0 (2026-12-01)\n", "", 1) == text
    assert new.index("## Unreleased") < new.index("## 0.2.0 (2026-12-01)") < new.index("## 0.1.0")
    assert notes == "\n".join(unreleased).strip() + "\n"
    with pytest.raises(release.Refused, match="nothing"):
        release.released(new, "0.3.0", DAY)
    with pytest.raises(release.Refused, match="already"):
        release.released(new, "0.2.0", DAY)


@pytest.mark.parametrize(
    ("text", "new"),
    [
        ("imagenet-serve:0.1.0 and 0.1.0-gpu", "imagenet-serve:0.2.0 and 0.2.0-gpu"),
        ("newTag: 0.1.0.", "newTag: 0.2.0."),
        ("10.1.0, 0.1.01, 0.1.0.5, 1.0.1.0, v0.1.0", "10.1.0, 0.1.01, 0.1.0.5, 1.0.1.0, v0.1.0"),
    ],
)
def test_a_version_is_renamed_where_it_stands_alone(text: str, new: str) -> None:
    assert release.renamed(text, "0.1.0", "0.2.0") == new


@pytest.mark.parametrize("version", ["", "1", "0.2", "0.2.0rc1", "v0.2.0", service.__version__, "0.0.1"])
def test_what_is_no_later_version_is_refused(version: str) -> None:
    with pytest.raises(release.Refused):
        release.check(version)


def test_the_version_of_the_image_is_that_of_the_package_everywhere() -> None:
    now = service.__version__
    files = {path for pattern in release.PLACES for path in ROOT.glob(pattern)}
    named = {path.name for path in files if release.renamed(path.read_text(), now, "") != path.read_text()}
    assert {"__init__.py", "kustomization.yaml", "Chart.yaml", "kserve.yaml", "KUBERNETES.md"} <= named
