"""NVIDIA's own client, as it is on PyPI, against a real service."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.http
import tritonclient.http.aio
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from service.models.checkpoints import resolve
from service.preprocess import prepare
from tests.server import HTTP, Server


@pytest.fixture
def client(server: Server) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


@pytest.fixture(scope="package")
def name(server: Server) -> str:
    return str(HTTP.get(f"{server.url}/model").json()["name"])


def image_input(photos: list[bytes]) -> InferInput:
    tensor = InferInput("image", [len(photos)], "BYTES")
    tensor.set_data_from_numpy(np.array(photos, dtype=np.object_))
    return tensor


def predicted(server: Server, photo: bytes) -> list[dict[str, object]]:
    answer = HTTP.post(f"{server.url}/predict?top_k=3", files={"file": photo}).json()
    return list(answer["predictions"])


def test_health_and_metadata(client: InferenceServerClient, name: str) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(name)
    assert client.is_model_ready(name, "1")
    assert not client.is_model_ready("another")
    assert client.get_server_metadata()["name"] == "imagenet-serve"
    metadata = client.get_model_metadata(name)
    assert [entry["name"] for entry in metadata["inputs"]] == ["image", "pixels"]
    assert metadata["inputs"][1]["shape"] == [-1, 64, 64, 3]


@pytest.mark.parametrize("binary", [True, False])
def test_pictures_to_classes_and_tensors(
    client: InferenceServerClient, name: str, server: Server, photos: list[bytes], binary: bool
) -> None:
    outputs = [
        InferRequestedOutput("probabilities", binary_data=binary, class_count=3),
        InferRequestedOutput("logits", binary_data=binary),
    ]
    result = client.infer(
        name, [image_input(photos)], outputs=outputs, request_id="seven", timeout=20_000_000
    )
    assert result.get_response()["id"] == "seven"
    classes = result.as_numpy("probabilities")
    assert classes.shape == (len(photos), 3)
    logits = result.as_numpy("logits")
    labels = HTTP.get(f"{server.url}/labels").json()
    for row, photo in enumerate(photos):
        for entry, expected in zip(classes[row], predicted(server, photo), strict=True):
            text = entry.decode() if isinstance(entry, bytes) else entry
            score, index, label = text.split(":", 2)
            assert label == expected["label"] == labels[int(index)]["label"]
            assert float(score) == pytest.approx(expected["probability"], abs=2e-5)
        assert labels[int(logits[row].argmax())]["class_id"] == predicted(server, photo)[0]["class_id"]


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_pixels_and_compression(
    client: InferenceServerClient, name: str, photos: list[bytes], compression: str | None
) -> None:
    """Pixels that were prepared elsewhere give what the pictures give; without outputs all come, in binary."""
    spec = resolve("demo", "densenet121").preprocessing
    pixels = np.zeros((len(photos), *spec.shape), np.uint8)
    for row, photo in zip(pixels, photos, strict=True):
        prepare(photo, spec, row, max_pixels=10**8)
    tensor = InferInput("pixels", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    ours = client.infer(name, [tensor], request_compression_algorithm=compression)
    theirs = client.infer(name, [image_input(photos)])
    for output in ("probabilities", "logits"):
        np.testing.assert_allclose(ours.as_numpy(output), theirs.as_numpy(output), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(ours.as_numpy("probabilities").sum(1), 1, rtol=1e-5)


def test_errors_arrive_as_the_clients_own(client: InferenceServerClient, name: str) -> None:
    with pytest.raises(InferenceServerException, match="accepted image formats") as caught:
        client.infer(name, [image_input([b"no picture"])])
    assert caught.value.status() == "415"
    with pytest.raises(InferenceServerException, match="max_images_per_request"):
        client.infer(name, [image_input([b"x"] * 65)])


def test_the_asynchronous_client(server: Server, name: str, photos: list[bytes]) -> None:
    async def run() -> list[int]:
        async with tritonclient.http.aio.InferenceServerClient(server.url.removeprefix("http://")) as client:
            assert await client.is_server_ready()
            results = await asyncio.gather(*[client.infer(name, [image_input(photos)]) for _ in range(5)])
            return [int(result.as_numpy("logits").argmax()) for result in results]

    assert len(set(asyncio.run(run()))) == 1
