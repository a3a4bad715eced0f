"""The photographs that come along, and what the model that comes along says to them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from service.host import samples as room
from service.host.samples import samples
from tests import tiny
from tests.server import HTTP, Server

ATTRIBUTION = (Path(__file__).resolve().parents[2] / "samples" / "ATTRIBUTION.md").read_text("utf-8")
#: Licences that let anybody pass the photographs on, with the author's name.
FREE = ("CC0 1.0", "public domain", "CC BY ")


def attributed() -> dict[str, list[str]]:
    """The table's lines by file: what it shows, ImageNet's class with its id, author, licence, source."""
    lines = re.findall(r"^\| `(\S+)` \| (.+) \|$", ATTRIBUTION, re.M)
    return {name: rest.split(" | ") for name, rest in lines}


def test_they_are_photographs_with_a_name_for_people() -> None:
    assert 3 <= len(samples()) <= 6
    for name, path in samples():
        assert name[0].isupper()
        with Image.open(path) as image:
            assert min(image.size) > 200


def test_an_installed_wheel_has_them_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "_samples"
    inside.mkdir()
    (inside / "a-red-fox.jpg").touch()
    (inside / "ATTRIBUTION.md").touch()
    monkeypatch.setattr(room, "_FOLDERS", (inside, tmp_path / "samples"))
    assert samples() == [("A red fox", inside / "a-red-fox.jpg")]
    monkeypatch.setattr(room, "_FOLDERS", (tmp_path / "nowhere",))
    assert samples() == []


def test_each_has_an_author_and_a_licence_that_lets_it_come_along() -> None:
    table = attributed()
    assert table.keys() == {path.name for _, path in samples()}
    for _, _, author, licence, source in table.values():
        assert author
        assert source
        assert licence.startswith(FREE)


def test_the_demo_model_knows_them_and_is_sure_best_first() -> None:
    table = attributed()
    with Server(weights=tiny.demo(), frontends=1, max_batch_size=4) as server:
        sure = []
        for _, path in samples():
            answer = HTTP.post(f"{server.url}/predict", files={"file": path.read_bytes()}).json()
            assert answer["weights"] == "demo"
            best = answer["predictions"][0]
            assert f"{best['label']} ({best['class_id']})" == table[path.name][1]
            sure.append(best["probability"])
    assert min(sure) >= 0.5
    assert sure == sorted(sure, reverse=True)
