"""Checkpoints of other origins through the whole service: a PNG in, the original library's own numbers out."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.server import HTTP, Server
from tests.uploads import encoded

FIXTURES = Path(__file__).parents[1] / "fixtures"
#: The originals' own tolerance: 2e-5 of the reference, of 1 where that is smaller.
TOLERANCE = 2e-5


def close(got: NDArray[Any], wanted: NDArray[Any]) -> bool:
    return bool((np.abs(got - wanted) <= TOLERANCE * np.maximum(1, np.abs(wanted))).all())


def answers(server: Server, png: bytes, **query: Any) -> NDArray[np.float64]:
    answer = HTTP.post(server.url + "/predict", params=query, files={"file": png})
    assert answer.status_code == 200, answer.text
    found = {
        entry["class_id"]: entry.get("probability", entry.get("logit"))
        for entry in answer.json()["predictions"]
    }
    return np.array([found[index] for index in range(len(found))])


@pytest.mark.parametrize(
    "name",
    [
        "khub_vgg_avg",
        # Their logits are compared without a server in every run.
        pytest.param("tv_densenet_old_keys/model.pth", marks=pytest.mark.slow),
        pytest.param("khub_densenet_g8", marks=pytest.mark.slow),
        pytest.param("timm_vgg", marks=pytest.mark.slow),
    ],
)
def test_a_png_gets_the_original_s_numbers(name: str) -> None:
    expected = np.load(FIXTURES / name.split("/")[0] / "expected.npz")
    png = encoded(Image.fromarray(expected["image"]))
    wanted = expected["pre_out"][0].astype(np.float64)
    with Server(weights=FIXTURES / name, top_k=100) as server:
        logits = answers(server, png, activation="none")
        probabilities = answers(server, png)
        softmax = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        assert close(probabilities, softmax)
        # What the original's pipeline gives is its logits, or its probabilities where its head has an activation.
        assert close(logits, wanted) or close(probabilities, wanted), (logits, probabilities, wanted)
        features = HTTP.post(
            server.url + "/features?pooling=none",
            files={"file": png},
            headers={"accept": "application/x-npy"},
        )
        array = np.load(io.BytesIO(features.content))
        for pooling, pooled in (("avg", array.mean((1, 2))), ("max", array.max((1, 2)))):
            one = HTTP.post(server.url + f"/features?pooling={pooling}", files={"file": png}).json()
            assert one["shape"] == [array.shape[0]]
            assert close(np.array(one["features"]), pooled)
        model = HTTP.get(server.url + "/model").json()
        assert model["trained"]
        assert len(model["sha256"]) == 64


def test_a_checkpoint_without_a_head_serves_features_only() -> None:
    with Server(weights=FIXTURES / "timm_vgg_bn_headless") as server:
        picture = encoded(
            Image.fromarray(np.load(FIXTURES / "timm_vgg_bn_headless" / "expected.npz")["image"])
        )
        assert HTTP.post(server.url + "/features", files={"file": picture}).status_code == 200
        refused = HTTP.post(server.url + "/predict", files={"file": picture})
        assert (refused.status_code, refused.json()["code"]) == (404, "not_found")
