"""`/predict` and `/predict/batch` over a fake model whose answers are functions of the pixels."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import numpy as np
import pytest

from tests.api.site import CLASSES, Site, logits_of, site
from tests.loops import on_a_loop, until
from tests.uploads import encoded, noise, png


def expected(data: bytes, k: int = 5) -> list[tuple[int, float]]:
    logits = logits_of(data).astype(np.float64)
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    order = sorted(range(10), key=lambda index: (-logits[index], index))
    return [(index, probabilities[index]) for index in order[:k]]


def check(predictions: list[dict[str, Any]], data: bytes, k: int = 5) -> None:
    wanted = expected(data, k)
    assert [entry["class_id"] for entry in predictions] == [index for index, _ in wanted]
    assert [entry["probability"] for entry in predictions] == pytest.approx([p for _, p in wanted], abs=1e-9)
    for entry in predictions:
        known = CLASSES[entry["class_id"]]
        assert (entry["wnid"], entry["label"]) == (known.wnid, known.label)


@on_a_loop
async def test_form_and_raw_body_give_the_same_answer() -> None:
    data = png(1)
    async with site() as here:
        form = await here.http.post("/predict", files={"file": ("a.png", data, "image/png")})
        raw = await here.http.post("/predict", content=data, headers={"content-type": "image/png"})
        assert form.status_code == raw.status_code == 200
        assert form.json()["predictions"] == raw.json()["predictions"]
        check(form.json()["predictions"], data)
        assert form.json()["model"] == "densenet121"
        assert form.json()["weights"] == "random:0"
        assert here.free == here.engine.arena.geometry.slots


@on_a_loop
async def test_the_answer_says_where_the_time_went_twice_the_same() -> None:
    async with site(delay=0.02) as here:
        answer = await here.http.post("/predict", files={"file": png(1)})
        timings = answer.json()["timings_ms"]
        header: dict[str, str] = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["server-timing"]))
        assert len(header) == len(answer.headers["server-timing"].split(", "))
        assert {name: float(value) for name, value in header.items()} == timings
        assert timings["inference"] >= 20
        assert timings["total"] >= timings["decode"] + timings["queue"] + timings["inference"]


@on_a_loop
async def test_top_k_and_activation() -> None:
    data = png(2)
    async with site() as here:
        one = await here.http.post("/predict?top_k=1", files={"file": data})
        check(one.json()["predictions"], data, 1)
        everything = await here.http.post("/predict?top_k=10", files={"file": data})
        assert sum(entry["probability"] for entry in everything.json()["predictions"]) == pytest.approx(1)
        logits = await here.http.post("/predict?top_k=10&activation=none", files={"file": data})
        for entry in logits.json()["predictions"]:
            assert entry["logit"] == logits_of(data)[entry["class_id"]]
            assert "probability" not in entry


@pytest.mark.parametrize("query", ["top_k=0", "top_k=11", "top_k=x", "top_k=-1", "activation=relu"])
@on_a_loop
async def test_a_wrong_parameter_is_named(query: str) -> None:
    async with site() as here:
        answer = await here.http.post(f"/predict?{query}", files={"file": png(1)})
        problem(answer, 422, "invalid_parameter")
        assert query.split("=")[0] in answer.json()["detail"]


def problem(answer: Any, status: int, code: str) -> None:
    """``answer`` is the problem document that the contract wants."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert set(document) == {"type", "title", "status", "detail", "code", "request_id"}
    assert (document["status"], document["code"]) == (status, code)
    assert document["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in document["detail"]


JPEG = encoded(noise(3, 200, 200), "JPEG")

BAD_BODIES = [
    ({"files": {"other": png(1)}}, 400, "missing_file"),
    ({"files": {"file": b""}}, 400, "empty_body"),
    ({"content": b"", "headers": {"content-type": "image/jpeg"}}, 400, "empty_body"),
    ({"content": b""}, 400, "empty_body"),
    (
        {"content": b"junk", "headers": {"content-type": "multipart/form-data; boundary=x"}},
        400,
        "malformed_multipart",
    ),
    ({"content": b"junk", "headers": {"content-type": "multipart/form-data"}}, 400, "malformed_multipart"),
    ({"content": JPEG, "headers": {"content-type": "text/plain"}}, 415, "unsupported_media_type"),
    ({"content": b"no picture"}, 415, "unsupported_media_type"),  # no type: judged by the bytes
    ({"content": b"GIF? no", "headers": {"content-type": "image/gif"}}, 415, "unsupported_media_type"),
    ({"files": {"file": b"%PDF-1.7"}}, 415, "unsupported_media_type"),
    ({"files": {"file": JPEG[: len(JPEG) // 2]}}, 422, "invalid_image"),
    ({"files": {"file": JPEG[:20]}}, 422, "invalid_image"),
    ({"files": [("file", png(1)), ("file", png(2))]}, 413, "too_many_images"),
]


@pytest.mark.parametrize(("body", "status", "code"), BAD_BODIES)
@on_a_loop
async def test_a_bad_body_gets_its_own_code(body: dict[str, Any], status: int, code: str) -> None:
    async with site() as here:
        problem(await here.http.post("/predict", **body), status, code)
        assert here.free == here.engine.arena.geometry.slots
        assert here.engine.runner.batches == []


@on_a_loop
async def test_an_upload_past_the_limit_is_refused_before_it_is_read() -> None:
    data = png(1)
    async with site(settings={"max_upload_bytes": len(data)}) as here:
        fits = await here.http.post("/predict", content=data, headers={"content-type": "image/png"})
        assert fits.status_code == 200
        as_form = await here.http.post("/predict", files={"file": data})
        assert as_form.status_code == 200  # the form's own lines do not count

        sent = 0

        async def endless() -> Any:
            nonlocal sent
            while sent < 10_000_000:
                sent += 65536
                yield bytes(65536)

        answer = await here.http.post("/predict", content=endless(), headers={"content-type": "image/png"})
        problem(answer, 413, "payload_too_large")
        declared = {"content-type": "image/png", "content-length": "99999999"}
        problem(await here.http.post("/predict", content=b"x", headers=declared), 413, "payload_too_large")
        problem(await here.http.post("/predict", files={"file": data + b"x"}), 413, "payload_too_large")


@on_a_loop
async def test_too_many_pixels_are_refused() -> None:
    async with site(settings={"max_image_pixels": 1000}) as here:
        problem(await here.http.post("/predict", files={"file": png(1, 40, 26)}), 413, "image_too_large")
        assert (await here.http.post("/predict", files={"file": png(1, 40, 25)})).status_code == 200


@on_a_loop
async def test_overload_is_said_at_once_and_says_when_to_return() -> None:
    async with site(slots=2) as here:
        here.engine.runner.may_run.clear()
        running = [asyncio.create_task(here.http.post("/predict", files={"file": png(n)})) for n in range(2)]
        await until(lambda: here.free == 0)
        answer = await here.http.post("/predict", files={"file": png(9)})
        problem(answer, 429, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        here.engine.runner.may_run.set()
        assert [(await one).status_code for one in running] == [200, 200]
        assert (await here.http.post("/predict", files={"file": png(9)})).status_code == 200


@on_a_loop
async def test_a_client_may_ask_for_less_time() -> None:
    async with site(max_batch_size=1, delay=0.3) as here:
        late = await here.http.post(
            "/predict", files={"file": png(1)}, headers={"x-request-timeout-ms": "50"}
        )
        problem(late, 504, "deadline_exceeded")
        for nonsense in ("soon", "0", "-5", "nan", "inf"):
            headers = {"x-request-timeout-ms": nonsense}
            answer = await here.http.post("/predict", files={"file": png(1)}, headers=headers)
            problem(answer, 422, "invalid_parameter")
        await until(lambda: here.free == here.engine.arena.geometry.slots)


@on_a_loop
async def test_a_client_may_not_ask_for_more_time() -> None:
    async with site(settings={"request_timeout_ms": 50}, delay=0.3) as here:
        headers = {"x-request-timeout-ms": "5000"}
        problem(
            await here.http.post("/predict", files={"file": png(1)}, headers=headers),
            504,
            "deadline_exceeded",
        )


@on_a_loop
async def test_a_failing_model_and_one_without_numbers_are_500() -> None:
    async with site() as here:
        here.engine.runner.error = RuntimeError("/secret/path")
        answer = await here.http.post("/predict", files={"file": png(1)})
        problem(answer, 500, "internal")
        assert "secret" not in answer.text
        here.engine.runner.error = None
        here.engine.runner.not_a_number = True
        before = await _images_without_numbers(here)
        problem(await here.http.post("/predict", files={"file": png(1)}), 500, "internal")
        assert await _images_without_numbers(here) == before + 1
        here.engine.runner.not_a_number = False
        assert (await here.http.post("/predict", files={"file": png(1)})).status_code == 200
        assert here.free == here.engine.arena.geometry.slots


async def _images_without_numbers(here: Site) -> float:
    scrape = (await here.http.get("/metrics")).text
    return float(re.findall(r"^imagenet_nan_outputs_total ([0-9.]+)$", scrape, re.MULTILINE)[0])


@on_a_loop
async def test_one_bad_image_of_a_batch_harms_nobody() -> None:
    images = [png(seed) for seed in range(64)]
    async with site(slots=16) as here:
        clean = await here.http.post(
            "/predict/batch", files=[("files", (f"{n}.png", d)) for n, d in enumerate(images)]
        )
        assert clean.status_code == 200
        images[17] = images[17][:100]
        images[40] = b"no picture"
        dirty = await here.http.post(
            "/predict/batch", files=[("files", (f"{n}.png", d)) for n, d in enumerate(images)]
        )
        assert dirty.status_code == 200
        results = dirty.json()["results"]
        assert [entry["filename"] for entry in results] == [f"{n}.png" for n in range(64)]
        for number, (before, after) in enumerate(zip(clean.json()["results"], results, strict=True)):
            if number not in (17, 40):
                assert before == after
                assert after["status"] == 200
                check(after["predictions"], images[number])
        assert (results[17]["status"], results[17]["error"]["code"]) == (422, "invalid_image")
        assert (results[40]["status"], results[40]["error"]["code"]) == (415, "unsupported_media_type")
        assert here.free == 16


@on_a_loop
async def test_a_batch_larger_than_the_arena_is_served_in_turn() -> None:
    images = [png(seed) for seed in range(9)]
    async with site(slots=1) as here:
        answer = await here.http.post("/predict/batch?top_k=2", files=[("files", image) for image in images])
        for entry, image in zip(answer.json()["results"], images, strict=True):
            check(entry["predictions"], image, 2)
        assert here.free == 1


@on_a_loop
async def test_batch_limits() -> None:
    async with site(settings={"max_images_per_request": 3}) as here:
        four = await here.http.post("/predict/batch", files=[("files", png(n)) for n in range(4)])
        problem(four, 413, "too_many_images")
        none = await here.http.post("/predict/batch", files={"file": png(1)})
        problem(none, 400, "missing_file")
        raw = await here.http.post("/predict/batch", content=png(1), headers={"content-type": "image/png"})
        problem(raw, 415, "unsupported_media_type")
        many = await here.http.post("/predict/batch", files=[("x", b"1") for _ in range(100)])
        problem(many, 413, "too_many_images")


@on_a_loop
async def test_a_deadline_ends_a_whole_batch_and_gives_every_slot_back() -> None:
    async with site(slots=4, max_batch_size=1, delay=0.1) as here:
        headers = {"x-request-timeout-ms": "150"}
        files = [("files", png(n)) for n in range(8)]
        problem(
            await here.http.post("/predict/batch", files=files, headers=headers), 504, "deadline_exceeded"
        )
        await until(lambda: here.free == 4)


@on_a_loop
async def test_many_clients_each_get_their_own_answer() -> None:
    async with site(slots=64, delay=0.002) as here:

        async def one(seed: int) -> None:
            data = png(seed)
            answer = await here.http.post("/predict", files={"file": data})
            while answer.status_code == 429:
                await asyncio.sleep(0.01)
                answer = await here.http.post("/predict", files={"file": data})
            check(answer.json()["predictions"], data)

        await asyncio.gather(*(one(seed) for seed in range(200)))
        assert max(map(len, here.engine.runner.batches)) > 1
        assert here.free == 64
