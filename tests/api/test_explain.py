"""`POST /explain` in front of a fake engine: what is asked for, what comes back, where it lies on the photo."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from service.images.overlay import MAX_SIDE, overlay
from service.labels import ClassLabel
from service.preprocess import Preprocessing, seen_box
from tests.api.site import CARD, logits_of, site
from tests.loops import on_a_loop
from tests.uploads import encoded, noise, png

#: As the demo model's: the number that answers use is not the place among the logits.
OWN = tuple(ClassLabel(100 + 7 * index, None, f"thing {index}") for index in range(10))


@on_a_loop
async def test_the_top_class_or_the_one_that_is_asked_for() -> None:
    async with site() as here:
        here.become(replace(CARD, classes=OWN))
        top = int(logits_of(png(1)).argmax())
        for query, index in (({}, top), ({"class_id": 100 + 7 * 3}, 3)):
            answer = await here.http.post("/explain", params=query, files={"file": png(1)})
            assert answer.status_code == 200, answer.text
            document = answer.json()
            assert document["class_id"] == OWN[index].class_id
            assert document["label"] == OWN[index].label
            assert document["grid"] == [[index, index - 1], [index - 2, index - 3]]  # the fake's
            assert document["method"] == "cam"
            assert (document["model"], document["weights"]) == ("densenet121", "random:0")
            assert document["request_id"] == answer.headers["x-request-id"]
            assert "inference;dur=" in answer.headers["server-timing"]
            assert 0 <= document["probability"] <= 1
        raw = await here.http.post("/explain", content=png(1), headers={"content-type": "image/png"})
        assert raw.json()["grid"] == (await here.http.post("/explain", files={"file": png(1)})).json()["grid"]
        assert here.free == 16


@on_a_loop
async def test_what_cannot_be_explained_is_said() -> None:
    async with site() as here:
        here.become(replace(CARD, classes=OWN))
        for wrong in ("3", "-1", "cat", "101"):
            answer = await here.http.post("/explain", params={"class_id": wrong}, files={"file": png(1)})
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameter")
            assert "class_id" in answer.json()["detail"]
        here.become(replace(CARD, classes=()))
        answer = await here.http.post("/explain", files={"file": png(1)})
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert "no classifier" in answer.json()["detail"]


@on_a_loop
async def test_numbers_that_are_none_are_not_drawn() -> None:
    async with site(not_a_number=True) as here:
        for accept in ("application/json", "image/png"):
            answer = await here.http.post("/explain", files={"file": png(1)}, headers={"accept": accept})
            assert (answer.status_code, answer.json()["code"]) == (500, "internal")


@on_a_loop
async def test_a_picture_for_those_who_want_one() -> None:
    photo = noise(1, 60, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    data = encoded(photo, "PNG", exif=exif)
    async with site() as here:
        answer = await here.http.post("/explain", files={"file": data}, headers={"accept": "image/png"})
        document = (await here.http.post("/explain", files={"file": data})).json()
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["x-class-id"] == str(document["class_id"])
        assert "total;dur=" in answer.headers["server-timing"]
        drawn = Image.open(io.BytesIO(answer.content))
        assert drawn.size == (30, 60)
        left, top, right, bottom = document["box"]
        assert (left + right) / 2 == pytest.approx(0.5, abs=0.1)
        assert (bottom - top) < (right - left)  # the crop is nearly square, the photo is tall
        same = np.asarray(drawn) == np.asarray(photo.transpose(Image.Transpose.ROTATE_270))
        assert same[: int(60 * top)].all()
        assert same[int(60 * bottom) + 1 :].all()
        assert not same[int(60 * top) + 1 : int(60 * bottom)].all()


@on_a_loop
async def test_a_deadline_holds_for_the_drawing_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    go = threading.Event()
    monkeypatch.setattr("service.api.explain.overlay", lambda *_: go.wait(60))
    async with site() as here:
        headers = {"accept": "image/png", "x-request-timeout-ms": "300"}
        answer = await here.http.post("/explain", files={"file": png(1)}, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
        go.set()


@pytest.mark.parametrize(
    ("spec", "size", "box"),
    [
        (Preprocessing(), (256, 512), (288 / 512 / 2, 1 / 16, 1 - 288 / 512 / 2, 15 / 16)),
        (Preprocessing(resize=None, crop=(224, 224)), (448, 448), (0.25, 0.25, 0.75, 0.75)),
        (Preprocessing(resize=None, crop=(224, 224)), (112, 448), (0.25, -0.5, 0.75, 1.5)),
        (Preprocessing(crop=(64, 64), fit="stretch"), (30, 90), (0.0, 0.0, 1.0, 1.0)),
        (Preprocessing(crop=(64, 64), fit="crop-resize"), (30, 90), (1 / 3, 0.0, 2 / 3, 1.0)),
        (Preprocessing(crop=(64, 64), fit="pad-resize"), (30, 90), (0.0, -1.0, 1.0, 2.0)),
    ],
)
def test_the_part_that_the_model_saw(
    spec: Preprocessing, size: tuple[int, int], box: tuple[float, float, float, float]
) -> None:
    assert seen_box(size, spec) == pytest.approx(box)


@pytest.mark.parametrize(
    "spec",
    [
        Preprocessing(resize=72, crop=(64, 64)),
        Preprocessing(resize=40, crop=(64, 48)),
        Preprocessing(crop=(64, 64), fit="crop-resize"),
        Preprocessing(crop=(64, 64), fit="pad-resize"),
        Preprocessing(crop=(48, 64), fit="stretch"),
    ],
)
@pytest.mark.parametrize("size", [(300, 200), (120, 310), (201, 201)])
def test_a_spot_of_the_photo_is_where_the_box_says(spec: Preprocessing, size: tuple[int, int]) -> None:
    """A bright spot in the photo, found again in what the model sees, through the box."""
    from service.preprocess import prepare

    photo = np.zeros((*size, 3), np.uint8)
    row, column = int(size[0] * 0.45), int(size[1] * 0.56)
    photo[row - 9 : row + 10, column - 9 : column + 10] = 255
    seen = np.zeros(spec.shape, np.uint8)
    prepare(encoded(Image.fromarray(photo)), spec, seen, max_pixels=10**7)
    weights = seen[:, :, 0].astype(float)
    y = (weights.sum(1) @ (np.arange(spec.crop[0]) + 0.5)) / weights.sum() / spec.crop[0]
    x = (weights.sum(0) @ (np.arange(spec.crop[1]) + 0.5)) / weights.sum() / spec.crop[1]
    left, top, right, bottom = seen_box(size, spec)
    assert (left + x * (right - left)) * size[1] == pytest.approx(column + 0.5, abs=1.5)
    assert (top + y * (bottom - top)) * size[0] == pytest.approx(row + 0.5, abs=1.5)


def test_the_map_lies_where_its_box_is_and_is_brightest_where_it_is_strongest() -> None:
    grid = np.zeros((4, 4), np.float32)
    grid[1, 2], grid[3, 0] = 5.0, -9.0
    black = Image.new("RGB", (200, 100))
    for box in ((0.0, 0.0, 1.0, 1.0), (0.5, 0.0, 1.0, 1.0), (-0.5, -1.0, 1.5, 2.0)):
        drawn = np.asarray(Image.open(io.BytesIO(overlay(black, grid, box)))).sum(2).astype(int)
        y, x = np.unravel_index(drawn.argmax(), drawn.shape)
        expected_x = (box[0] + 2.5 / 4 * (box[2] - box[0])) * 200
        expected_y = (box[1] + 1.5 / 4 * (box[3] - box[1])) * 100
        assert abs(x - expected_x) < 12
        assert abs(y - expected_y) < 12
    nothing = overlay(black, -np.ones((2, 2), np.float32), (0.0, 0.0, 1.0, 1.0))
    assert np.asarray(Image.open(io.BytesIO(nothing))).max() < 10
    away = overlay(black, np.ones((2, 2), np.float32), (2.0, 0.0, 3.0, 1.0))
    assert not np.asarray(Image.open(io.BytesIO(away))).any()


@on_a_loop
async def test_a_large_photo_comes_back_smaller() -> None:
    async with site() as here:
        answer = await here.http.post(
            "/explain", files={"file": png(1, 3000, 1000)}, headers={"accept": "image/png"}
        )
        assert Image.open(io.BytesIO(answer.content)).size == (MAX_SIDE, 341)
