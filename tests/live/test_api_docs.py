"""docs/API.md is true: its commands are run, and what it shows is what comes. So is the README's Python."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from service.api import errors
from service.api.app import create_api
from service.settings import Settings
from tests.server import Server

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
TEXT = (ROOT / "docs" / "API.md").read_text("utf-8")

#: What is another one each time; only its type is compared.
CHANGING = {"request_id", "timings_ms", "platform", "seconds"}
MORE = "…"
#: The classification extension's strings.
SCORED = re.compile(r"(\d\.\d{6})(:.*)")


class Block(NamedTuple):
    language: str
    content: str


class Example(NamedTuple):
    """A command, and the block that shows what it prints, if there is one."""

    language: str
    source: str
    shown: Block | None


def blocks(text: str) -> list[Block]:
    return [Block(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S)]


def examples() -> list[Example]:
    found = []
    listed = [
        *blocks(TEXT),
        *(block for block in blocks(README) if block.language == "python"),
        Block("", ""),
    ]
    for block, following in pairwise(listed):
        shown = following if following.language in ("json", "text") else None
        if block.language == "python":
            found.append(Example("python", block.content, shown))
        if block.language == "console":
            *first, last = commands(block.content)
            found += [Example("sh", command, None) for command in first]
            command, _, output = last.partition("\n# ")
            found.append(Example("sh", command, Block("text", output) if output else shown))
    return found


def commands(content: str) -> list[str]:
    """The commands of a block; what one prints follows it after a line's end and ``# ``."""
    found: list[str] = []
    for line in content.splitlines():
        if line.startswith("$ "):
            found.append(line[2:])
        elif line.startswith("> "):
            found[-1] += "\n" + line[2:]
        else:
            found[-1] += f"\n# {line}\n" if "\n# " not in found[-1] else f"{line}\n"
    return found


def run(example: Example, url: str, folder: Path) -> str:
    """In the repository's folder, but that what is written goes to ``folder``."""
    source = example.source.replace("http://localhost:8000", url)
    source = source.replace("localhost:8000", url.removeprefix("http://"))
    for path in ("samples", "README.md"):
        if not (folder / path).exists():
            (folder / path).symlink_to(ROOT / path)
    command = (
        [sys.executable, "-W", "error", "-c", source]
        if example.language == "python"
        else ["sh", "-ec", source]
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.source[:60].replace("\n", " "))
def test_an_example_prints_what_the_page_shows(example: Example, server: Server, folder: Path) -> None:
    printed = run(example, server.url, folder)
    if example.shown is None:
        return
    if example.shown.language == "text":
        assert printed == example.shown.content
    else:
        compare(json.loads(printed), json.loads(example.shown.content), "")


def compare(actual: Any, shown: Any, place: str) -> None:
    """``…`` stands for more: as a key of an object, or as the last element of a list."""
    if place.rpartition(".")[2] in CHANGING:
        assert type(actual) is type(shown), place
        if isinstance(shown, dict):
            assert actual.keys() == shown.keys(), place
    elif isinstance(shown, dict):
        assert isinstance(actual, dict), place
        wanted = shown.keys() - {MORE}
        assert wanted <= actual.keys() if MORE in shown else wanted == actual.keys(), place
        for key in wanted:
            compare(actual[key], shown[key], f"{place}.{key}")
    elif isinstance(shown, list):
        assert isinstance(actual, list), place
        more = bool(shown) and shown[-1] == MORE
        wanted_items = shown[:-1] if more else shown
        assert len(actual) > len(wanted_items) if more else len(actual) == len(shown), place
        for index, item in enumerate(wanted_items):
            compare(actual[index], item, f"{place}[{index}]")
    elif isinstance(shown, float):
        assert actual == pytest.approx(shown, rel=0.02, abs=0.001), place
    elif isinstance(shown, str) and (scored := SCORED.fullmatch(shown)):
        found = SCORED.fullmatch(actual)
        assert found is not None, place
        assert found[2] == scored[2], place
        compare(float(found[1]), float(scored[1]), place)
    else:
        assert actual == shown, place


def test_every_route_is_on_the_page() -> None:
    for path, methods in create_api(Settings()).openapi()["paths"].items():
        for method in methods:
            named = f"{method.upper()} {path}".replace("{model_name}", "{name}")
            assert f"`{named}`" in TEXT, named


def test_every_error_is_on_the_page() -> None:
    rows = {row[0]: row[1] for row in re.findall(r"^\| (\d{3}) \| ([^|]*) \|", TEXT, re.M)}
    for error, status in errors._STATUS.items():
        assert f"`{error.code}`" in rows[str(status)]


def test_links_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", TEXT, re.M)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for link in re.findall(r"\]\(#([^)]*)\)", TEXT):
        assert link in anchors, link
