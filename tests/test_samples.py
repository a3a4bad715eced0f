"""The photographs that come along, and what the model that comes along says to them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from service import samples as room
from service.models.checkpoints.places import DEMO
from service.samples import samples
from tests.server import HTTP, Server

#: Among a cat's relatives the demo model may take one for the other: ImageNet's five kinds of house cat.
CATS = {"tabby", "tiger cat", "Persian cat", "Siamese cat", "Egyptian cat"}


def test_they_are_photographs_with_a_name_for_people() -> None:
    assert {"chelsea.jpg", "coffee.jpg", "rocket.jpg"} <= {path.name for _, path in samples()}
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


@pytest.mark.skipif(not DEMO.is_dir(), reason="service/models/demo is not there: no model comes along yet")
def test_the_demo_model_recognises_them() -> None:
    with Server(weights="demo", frontends=1, max_batch_size=4) as server:
        answers = {}
        for _, path in samples():
            answer = HTTP.post(f"{server.url}/predict", files={"file": path.read_bytes()}).json()
            assert answer["weights"] == "demo"
            answers[path.name] = [entry["label"] for entry in answer["predictions"]]
    assert answers["chelsea.jpg"][0] in CATS
    assert answers["coffee.jpg"][0] == "espresso"
