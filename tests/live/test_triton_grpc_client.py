"""NVIDIA's own gRPC client, as it is on PyPI, against a real service."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest

from tests.server import HTTP, Server

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its generated code
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException


@pytest.fixture
def client(server: Server) -> Any:
    (port,) = {found[1] for line in server.lines if (found := re.search(r"gRPC on port (\d+)", line))}
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        yield client


def test_it_gives_the_answers_of_predict(client: Any, server: Server, photos: list[bytes]) -> None:
    model = HTTP.get(f"{server.url}/model").json()
    name = model["name"]
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(name)
    tensor = triton.InferInput("image", [len(photos)], "BYTES")
    tensor.set_data_from_numpy(np.array(photos, dtype=np.object_))
    answer = client.infer(name, [tensor])
    probabilities = answer.as_numpy("probabilities")
    assert probabilities.shape == (len(photos), model["classes"])
    for row, photo in zip(probabilities, photos, strict=True):
        best = HTTP.post(f"{server.url}/predict?top_k=1", files={"file": photo}).json()["predictions"][0]
        assert row.max() == pytest.approx(best["probability"], abs=1e-5)
    wanted = triton.InferRequestedOutput("probabilities", class_count=3)
    classes = client.infer(name, [tensor], outputs=[wanted]).as_numpy("probabilities")
    assert classes.shape == (len(photos), 3)
    with pytest.raises(InferenceServerException, match="no such model"):
        client.infer("another", [tensor])
