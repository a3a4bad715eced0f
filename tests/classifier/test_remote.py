"""A server as a classifier, against a transport that answers as servers do on bad days."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from service.classifier import remote
from service.classifier.remote import RemoteClassifier
from service.errors import ConfigurationError

MODEL = {"name": "densenet121", "weights": "demo", "accuracy": None}
LABELS = [{"class_id": 285, "wnid": "n02124075", "label": "Egyptian cat"}]
TIMINGS = {"decode": 1.0, "queue": 1.0, "inference": 3.0, "total": 5.0}
ANSWER = {
    "request_id": "one",
    "model": "densenet121",
    "weights": "demo",
    "predictions": [{**LABELS[0], "probability": 1.0}],
    "timings_ms": TIMINGS,
}

Answers = Callable[[httpx.Request], httpx.Response]


def classifier(answer: Answers) -> RemoteClassifier:
    """A server with one class whose `/predict` is ``answer``."""

    def handle(request: httpx.Request) -> httpx.Response:
        known = {"/model": MODEL, "/labels": LABELS}.get(request.url.path)
        return httpx.Response(200, json=known) if known else answer(request)

    return RemoteClassifier("http://server/", key="secret", top_k=1, transport=httpx.MockTransport(handle))


def after(refusals: Iterator[httpx.Response | Exception]) -> Answers:
    def answer(request: httpx.Request) -> httpx.Response:
        refusal = next(refusals, None)
        if isinstance(refusal, Exception):
            raise refusal
        return refusal or httpx.Response(200, json=ANSWER)

    return answer


def busy(status: int = 429, retry_after: str = "0.01") -> httpx.Response:
    return httpx.Response(status, headers={"retry-after": retry_after}, json={"detail": "too much"})


def test_the_image_travels_as_it_is_with_the_key(tmp_path: Path) -> None:
    photo = tmp_path / "a.jpg"
    photo.write_bytes(b"bytes")
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=ANSWER)

    with classifier(answer) as server:
        (result,) = server.classify([photo])
    assert result.predictions[0]["class_id"] == 285
    assert result.milliseconds == 5.0
    assert server.identity.classes[0].wnid == "n02124075"
    (request,) = seen
    assert request.content == b"bytes"
    assert request.headers["authorization"] == "Bearer secret"
    assert request.headers["content-type"] == "image/jpeg"
    assert request.url.params["top_k"] == "1"


def test_what_is_refused_for_now_comes_again() -> None:
    refusals = iter([busy(), busy(503), busy(504), httpx.ReadError("reset"), busy()])
    with classifier(after(refusals)) as server:  # type: ignore[arg-type]
        (result,) = server.classify([b"x"])
    assert not result.error
    assert next(refusals, None) is None


def test_results_keep_the_images_order_and_errors_their_words(tmp_path: Path) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.content == b"bad":
            return httpx.Response(422, json={"detail": "damaged"})
        return httpx.Response(
            200, json={**ANSWER, "timings_ms": {**TIMINGS, "total": float(request.content)}}
        )

    images = [str(number).encode() for number in range(50)]
    with classifier(answer) as server:
        results = list(server.classify([*images, b"bad", tmp_path / "missing"]))
    assert [result.milliseconds for result in results[:50]] == [*range(50)]
    assert [result.error for result in results[50:]] == ["damaged", "no such file or directory"]


def test_a_connection_that_an_image_breaks_is_that_images_error() -> None:
    with classifier(after(httpx.ReadError("reset") for _ in range(3))) as server:
        broken, fine = server.classify([b"x"]), server.classify([b"y"])
        assert "reset" in next(broken).error
        assert not next(fine).error


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (httpx.Response(401, json={"detail": "key"}), "--api-key"),
        (httpx.Response(404, text="<html>"), "answered 404: Not Found"),
        (httpx.Response(200, text="<html>"), "does not answer as imagenet-serve does"),
        (busy(503), "kept answering 503"),
    ],
)
def test_a_server_that_is_none_is_one_sentence(
    answer: httpx.Response, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PATIENCE", 0.0)
    transport = httpx.MockTransport(lambda request: answer)
    with (
        pytest.raises(ConfigurationError, match=sentence),
        RemoteClassifier("http://server", transport=transport),
    ):
        pass
