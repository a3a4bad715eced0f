"""KServe's own client, as it is on PyPI, against a real service. Its libraries are many: `make test-kserve`."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
import numpy as np
import pytest

from tests.server import HTTP, Server

pytestmark = pytest.mark.kserve


def name_of(server: Server) -> str:
    return str(HTTP.get(f"{server.url}/model").json()["name"])


def client() -> Any:
    from kserve import InferenceRESTClient
    from kserve.inference_client import RESTConfig

    return InferenceRESTClient(RESTConfig(protocol="v2", timeout=60))


def pictures(name: str, photos: list[bytes], **more: Any) -> Any:
    from kserve import InferInput, InferRequest

    tensor = InferInput("image", [len(photos)], "BYTES")
    tensor.set_data_from_numpy(np.array(photos, dtype=np.object_), binary_data=True)
    return InferRequest(model_name=name, infer_inputs=[tensor], **more)


def test_health(server: Server) -> None:
    async def run() -> None:
        async with client() as kserve:
            assert await kserve.is_server_live(server.url) is True
            assert await kserve.is_server_ready(server.url) is True
            assert await kserve.is_model_ready(server.url, name_of(server)) is True
            assert await kserve.is_model_ready(server.url, "another") is False

    asyncio.run(run())


@pytest.mark.parametrize("binary", [True, False])
def test_pictures(server: Server, photos: list[bytes], binary: bool) -> None:
    from kserve.protocol.infer_type import RequestedOutput

    name = name_of(server)
    outputs = [
        RequestedOutput("probabilities", {"binary_data": binary}),
        RequestedOutput("logits", {"binary_data": binary, "classification": 2}),
    ]

    async def run() -> Any:
        async with client() as kserve:
            request = pictures(name, photos, request_id="seven", request_outputs=outputs)
            return await kserve.infer(server.url, request, model_name=name)

    response = asyncio.run(run())
    assert response.id == "seven"
    probabilities, classes = (output.as_numpy() for output in response.outputs)
    assert probabilities.shape == (len(photos), 200)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    labels = HTTP.get(f"{server.url}/labels").json()
    for row, entry in zip(probabilities, classes, strict=True):
        text = entry[0].decode() if isinstance(entry[0], bytes) else str(entry[0])
        assert text.split(":", 2)[1:] == [str(row.argmax()), labels[int(row.argmax())]["label"]]


def test_pixels_as_json(server: Server) -> None:
    from kserve import InferInput, InferRequest

    name = name_of(server)
    tensor = InferInput("pixels", [1, 64, 64, 3], "UINT8")
    tensor.set_data_from_numpy(np.full((1, 64, 64, 3), 127, np.uint8), binary_data=False)

    async def run() -> Any:
        async with client() as kserve:
            return await kserve.infer(server.url, InferRequest(name, [tensor]), model_name=name)

    assert [output.name for output in asyncio.run(run()).outputs] == ["probabilities", "logits"]


def test_errors_arrive_as_the_clients_own(server: Server) -> None:
    async def run() -> None:
        async with client() as kserve:
            request = pictures(name_of(server), [b"no picture"])
            with pytest.raises(httpx.HTTPStatusError, match="accepted image formats"):
                await kserve.infer(server.url, request, model_name=name_of(server))

    asyncio.run(run())


def test_the_grpc_client_gives_the_same_answers(server: Server, photos: list[bytes]) -> None:
    from kserve import InferenceGRPCClient

    (port,) = {found[1] for line in server.lines if (found := re.search(r"gRPC on port (\d+)", line))}
    name = name_of(server)

    async def run() -> Any:
        kserve = InferenceGRPCClient(f"127.0.0.1:{port}")
        try:
            assert await kserve.is_server_live() is True
            assert await kserve.is_server_ready() is True
            assert await kserve.is_model_ready(name) is True
            return await kserve.infer(pictures(name, photos))
        finally:
            await kserve.close()

    answer = asyncio.run(run())
    probabilities = next(output for output in answer.outputs if output.name == "probabilities").as_numpy()
    for row, photo in zip(probabilities, photos, strict=True):
        best = HTTP.post(f"{server.url}/predict?top_k=1", files={"file": photo}).json()["predictions"][0]
        assert row.max() == pytest.approx(best["probability"], abs=1e-5)
