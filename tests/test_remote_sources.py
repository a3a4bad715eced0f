"""Weights from a hub by the real command, in a process of its own: nothing is imported but what it imports itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.models.loopback import Reply, Request, serve
from tests.models.parity import FIXTURES
from tests.models.test_huggingface import REPO, repository
from tests.server import HTTP, Server
from tests.uploads import encoded

HUB = "hf:/" + REPO
PRESET = "kaggle://keras/densenet/keras/tiny/3"


def environment(url: str, folder: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": url,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "KAGGLE_API_ENDPOINT": url,
        "KAGGLEHUB_CACHE": str(folder / "kaggle"),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }


def kaggle(request: Request) -> Reply:
    path = FIXTURES / "khub_densenet_g8" / request.path.rpartition("/")[2]
    return Reply(body=path.read_bytes()) if path.is_file() else Reply(404)


@pytest.mark.parametrize(
    ("weights", "fixture", "answer"),
    [
        (HUB, "timm_vgg", repository(FIXTURES / "timm_vgg")),
        pytest.param(
            f"{HUB}/model.pth",
            "tv_densenet_old_keys",
            repository(FIXTURES / "tv_densenet_old_keys"),
            marks=pytest.mark.slow,
        ),
        pytest.param(PRESET, "khub_densenet_g8", kaggle, marks=pytest.mark.slow),
    ],
)
def test_serve_starts_with_weights_of_a_hub(
    tmp_path: Path, weights: str, fixture: str, answer: Callable[[Request], Reply]
) -> None:
    picture = encoded(Image.fromarray(np.load(FIXTURES / fixture / "expected.npz")["image"]))
    with serve(answer) as hub, Server(weights=weights, environment=environment(hub.url, tmp_path)) as server:
        assert HTTP.post(server.url + "/predict", files={"file": picture}).status_code == 200


@pytest.mark.parametrize(
    ("weights", "reply"),
    [
        (HUB, Reply(401, headers={"X-Error-Code": "RepoNotFound"})),
        *(
            pytest.param(weights, reply, marks=pytest.mark.slow)
            for weights in (HUB, f"{HUB}/model.pth", PRESET)
            for reply in (Reply(401), Reply(403), Reply(404), Reply(200, b"{}" * 1000, cut=100))
        ),
    ],
)
def test_what_a_hub_refuses_is_one_sentence(tmp_path: Path, weights: str, reply: Reply) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with serve(lambda request: reply) as hub:
        ran = subprocess.run(
            [sys.executable, "-m", "service", "classify", str(tmp_path / "a.png"), "--weights", weights],
            capture_output=True,
            text=True,
            env={**os.environ, **environment(hub.url, tmp_path)},
        )
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    assert ran.stderr.strip().splitlines()[-1].startswith("imagenet-serve: ")
