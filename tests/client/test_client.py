"""The Python client against transports that answer as servers do on bad days, and as this service does."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageOps

from service.client import (
    ApiError,
    AsyncClient,
    Broken,
    Client,
    Refused,
    Unavailable,
    Unexpected,
    Unreachable,
    retry,
)
from service.client.photos import read_photo
from tests.api.site import CLASSES, logits_of, site
from tests.loops import on_a_loop
from tests.uploads import png

TIMINGS = {"decode": 1.0, "queue": 1.0, "inference": 3.0, "total": 5.0}
HEAD = {"request_id": "one", "model": "densenet121", "weights": "demo"}
CAT = {"class_id": 285, "wnid": "n02124075", "label": "Egyptian cat", "probability": 0.5}
ANSWER = {**HEAD, "predictions": [CAT], "timings_ms": TIMINGS}

Handler = Callable[[httpx.Request], httpx.Response]


def sync_predict(handler: Handler, **settings: Any) -> Any:
    with Client("http://server", transport=httpx.MockTransport(handler), **settings) as client:
        return client.predict(b"photo")


def async_predict(handler: Handler, **settings: Any) -> Any:
    async def run() -> Any:
        transport = httpx.MockTransport(handler)
        async with AsyncClient("http://server", transport=transport, **settings) as client:
            return await client.predict(b"photo")

    return asyncio.run(run())


both = pytest.mark.parametrize("predict", [sync_predict, async_predict])


def busy(status: int = 429, retry_after: str | None = "0.01") -> httpx.Response:
    headers = {} if retry_after is None else {"retry-after": retry_after}
    document = {"status": status, "code": "overloaded", "detail": "too much", "request_id": "two"}
    return httpx.Response(status, headers=headers, json=document)


def after(refusals: Iterator[httpx.Response | Exception]) -> Handler:
    def answer(request: httpx.Request) -> httpx.Response:
        refusal = next(refusals, None)
        if isinstance(refusal, Exception):
            raise refusal
        return refusal or httpx.Response(200, json=ANSWER)

    return answer


@both
def test_what_is_refused_for_now_comes_again(predict: Any) -> None:
    refusals = iter(
        [busy(), busy(503), busy(504), httpx.ReadError("reset"), httpx.ConnectError("no"), busy()]
    )
    answer = predict(after(refusals))  # type: ignore[arg-type]
    assert next(refusals, None) is None
    assert answer.best.label == "Egyptian cat"
    assert answer.best.logit is None
    assert (answer.request_id, answer.model, answer.timings_ms.total) == ("one", "densenet121", 5.0)


@both
def test_patience_has_an_end(predict: Any) -> None:
    for settings, retry_after in (({"patience": 0.0}, "0.01"), ({"patience": 5.0}, "3600")):
        with pytest.raises(Unavailable, match="too much") as caught:
            predict(lambda request, seconds=retry_after: busy(429, seconds), **settings)
        assert (caught.value.status, caught.value.code) == (429, "overloaded")
        assert caught.value.request_id == "two"


@both
def test_a_deadline_travels_and_is_final_when_missed(predict: Any) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return busy(504)

    with pytest.raises(Unavailable) as caught:
        predict(answer, timeout=1.5, key="secret")
    assert caught.value.status == 504
    (request,) = seen
    assert request.headers["x-request-timeout-ms"] == "1500"
    assert request.headers["authorization"] == "Bearer secret"
    assert request.content == b"photo"


@both
@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (httpx.Response(422, json={"detail": "damaged", "code": "invalid_image"}), Refused, "damaged"),
        (httpx.Response(404, text="<html>"), Refused, "404: Not Found"),
        (httpx.Response(500, json={"detail": "a defect", "code": "internal"}), ApiError, "a defect"),
        (httpx.Response(200, text="<html>"), Unexpected, "/predict"),
        (httpx.Response(200, json={"predictions": []}), Unexpected, "/predict"),
        (httpx.Response(200, json=[]), Unexpected, "/predict"),
        (httpx.ConnectError("refused"), Unreachable, "http://server"),
        (httpx.ReadTimeout("late"), Broken, "late"),
    ],
)
def test_what_goes_wrong_has_a_type(predict: Any, answer: Any, error: type[Exception], words: str) -> None:
    asked = 0

    def handle(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, content=answer.content)  # each is of one client

    with pytest.raises(error, match=words):
        predict(handle)
    assert asked == (3 if error is Broken else 1)


@pytest.mark.parametrize("url", ["http://[::1", "nonsense", "http://exa mple"])
def test_an_address_that_is_none(url: str) -> None:
    def ask() -> None:
        with Client(url) as client:
            client.predict(b"x")

    with pytest.raises(Unreachable):
        ask()


def test_photos_come_as_paths_files_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"photo")
    seen: list[tuple[str, bytes]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.headers["content-type"], request.content))
        return httpx.Response(200, json=ANSWER)

    with Client("http://server/", transport=httpx.MockTransport(answer)) as client:
        client.predict(path)
        client.predict(str(path))
        with path.open("rb") as file:
            client.predict(file)
        client.predict(io.BytesIO(b"photo"))
        client.predict(memoryview(b"photo"))
        with pytest.raises(FileNotFoundError):
            client.predict(tmp_path / "missing.png")
    assert seen == [("image/png", b"photo")] * 3 + [("application/octet-stream", b"photo")] * 2


PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 4), np.uint8)


@pytest.mark.parametrize(
    "photo",
    [
        PIXELS[:, :, 0],
        PIXELS[:, :, :1],
        PIXELS[:, :, :3],
        PIXELS,
        PIXELS[::-1, ::2, :3],
        Image.fromarray(PIXELS[:, :, :3]),
        Image.fromarray(PIXELS[:, :, :3]).convert("CMYK"),
        Image.fromarray(PIXELS[:, :, 0]).convert("F"),
        Image.fromarray(PIXELS[:, :, 0]).convert("I;16"),
    ],
    ids=lambda photo: f"{type(photo).__name__} {getattr(photo, 'mode', getattr(photo, 'shape', ''))}",
)
def test_pixels_travel_as_they_are(photo: Any) -> None:
    sent = Image.open(io.BytesIO(read_photo(photo).data)).convert("RGB")
    if isinstance(photo, np.ndarray):
        photo = Image.fromarray(photo[:, :, 0] if photo.ndim == 3 and photo.shape[2] == 1 else photo)
    assert np.array_equal(np.asarray(sent), np.asarray(photo.convert("RGB")))


def test_an_image_is_upright_as_its_file_is() -> None:
    image = Image.fromarray(PIXELS[:, :, :3])
    image.getexif()[274] = 6  # to be turned by 90 degrees
    sent = Image.open(io.BytesIO(read_photo(image).data))
    assert sent.size == (6, 5)
    assert ImageOps.exif_transpose(sent).size == (6, 5), "and it is not turned twice"


@given(
    st.none()
    | st.integers()
    | st.floats()
    | st.lists(st.integers())
    | st.dictionaries(st.text(), st.text())
    | st.builds(io.StringIO, st.text())
    | arrays(st.sampled_from([np.float32, np.int64, np.bool_]), st.tuples(*[st.integers(1, 3)] * 3))
    | arrays(np.uint8, st.sampled_from([(3,), (2, 2, 2), (1, 2, 2, 3), (0, 2), ()]))
)
def test_anything_else_is_a_sentence(photo: Any) -> None:
    with Client("http://127.0.0.1:1") as client, pytest.raises(TypeError, match=r"photo|pixels"):
        client.predict(photo)


def test_no_photos_are_an_empty_answer_and_one_is_not_several() -> None:
    def never(request: httpx.Request) -> httpx.Response:
        raise AssertionError("nobody is asked")

    with Client("http://server", transport=httpx.MockTransport(never)) as client:
        assert client.predict_batch([]).results == ()
        for one in ("a.jpg", b"bytes", Path("a.jpg"), io.BytesIO(b"x"), 3, Image.new("L", (1, 1))):
            with pytest.raises(TypeError, match="a list of them"):
                client.predict_batch(one)  # type: ignore[arg-type]

    async def asynchronously() -> None:
        async with AsyncClient("http://server", transport=httpx.MockTransport(never)) as client:
            assert (await client.predict_batch(iter(()))).results == ()

    asyncio.run(asynchronously())


def test_when_another_try_is_worth_it() -> None:
    def pause(status: int, retry_after: str | None = None, **more: bool) -> float | None:
        return retry.pause_before_retry(busy(status, retry_after), **more)

    assert pause(429, "3") == 3.0
    assert pause(429, "-3") == 0.0
    assert pause(503) == pause(503, "Wed, 21 Oct 2026 07:28:00 GMT") == 0.5
    assert pause(504, "1") == 1.0
    assert pause(504, "1", deadlined=True) is None
    assert [pause(status, "1") for status in (200, 400, 413, 422, 500)] == [None] * 5


def test_ready_and_health_are_asked_once() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return busy(503) if request.url.path == "/readyz" else httpx.Response(200, json={"state": "loading"})

    with Client("http://server", transport=httpx.MockTransport(answer)) as client:
        assert not client.ready()
        assert client.health() == {"state": "loading"}
    assert asked == ["/readyz", "/healthz"]


@asynccontextmanager
async def asynchronous(**settings: Any) -> Any:
    """A client whose transport is the service itself, with a fake model."""
    async with site(**settings) as here:
        transport = here.http._transport
        async with AsyncClient("http://service", transport=transport) as client:
            yield here, client


@on_a_loop
async def test_every_method_against_the_service() -> None:
    photos = [png(n) for n in range(3)]
    async with asynchronous() as (here, client):
        assert await client.ready()
        assert (await client.model())["name"] == "densenet121"
        assert [entry["label"] for entry in await client.labels()] == [entry.label for entry in CLASSES]
        assert (await client.health())["state"] == "ready"
        logits = logits_of(photos[0])
        top = await client.predict(photos[0], top_k=2, activation="none")
        assert len(top.predictions) == 2
        assert (top.best.logit, top.best.probability) == (float(logits.max()), None)
        batch = await client.predict_batch([photos[0], b"no picture", photos[1]], top_k=1)
        assert [len(item.predictions) for item in batch.results] == [1, 0, 1]
        error = batch.results[1].error
        assert isinstance(error, Refused)
        assert (error.status, error.code) == (415, "unsupported_media_type")
        assert batch.results[2].error is None
        features = await client.features(photos[0], pooling="none")
        assert features.array.shape == (2, 2, 2)
        assert features.array.dtype == np.float32
        explanation = await client.explain(photos[0], class_id=3)
        assert (explanation.class_id, explanation.method) == (3, "cam")
        assert explanation.grid.tolist() == [[3, 2], [1, 0]]
        assert len(explanation.box) == 4
        assert (await client.overlay(photos[0])).startswith(b"\x89PNG")
        with pytest.raises(Refused, match="class_id"):
            await client.explain(photos[0], class_id=10)
        assert here.free == 16


@on_a_loop
async def test_who_is_turned_away_by_a_full_queue_is_served_in_the_end() -> None:
    async with asynchronous(slots=2, delay=0.01) as (here, client):
        photos = [png(n) for n in range(6)]
        answers = await asyncio.gather(*[client.predict(photo, top_k=1) for photo in photos])
        for photo, answer in zip(photos, answers, strict=True):
            assert answer.best.class_id == int(logits_of(photo).argmax())
        assert here.free == 2


def test_both_clients_offer_the_same() -> None:
    def methods(client: type) -> dict[str, Any]:
        return {name: member for name, member in vars(client).items() if not name.startswith("_")}

    assert methods(Client).keys() == methods(AsyncClient).keys()
    for name, method in methods(Client).items():
        assert method.__annotations__ == methods(AsyncClient)[name].__annotations__, name


def test_it_imports_no_torch_and_no_server() -> None:
    code = (
        "import sys, service.client;"
        "print([m for m in ('torch', 'fastapi', 'uvicorn', 'PIL', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
