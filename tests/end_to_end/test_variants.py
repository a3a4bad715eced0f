"""The twelve variants through the whole service, against torchvision's own model and preset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from service.models.catalog import VARIANTS
from service.models.torchvision_import import torchvision
from tests.server import HTTP, Server

SAMPLES = sorted((Path(__file__).parents[2] / "samples").glob("*.jpg"))


def reference(name: str, photos: list[Path]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Softmax of torchvision's model with seed 0 on torchvision's preset, float64 ``[photos, 1000]``."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name).eval()
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    batch = torch.stack([preset(Image.open(photo).convert("RGB")) for photo in photos])
    with torch.inference_mode():
        return torch.softmax(model(batch).double(), 1).numpy()


def check(name: str) -> None:
    wanted = reference(name, SAMPLES)
    # Batches of two are enough to meet all of it, and a first start measures no larger ones.
    with Server(model=name, weights="random:0", top_k=1000, max_batch_size=2) as server:
        for photo, probabilities in zip(SAMPLES, wanted, strict=True):
            data = photo.read_bytes()
            form = HTTP.post(server.url + "/predict", files={"file": data}).json()
            raw = HTTP.post(
                server.url + "/predict", content=data, headers={"content-type": "image/jpeg"}
            ).json()
            assert form["predictions"] == raw["predictions"]
            assert (form["model"], form["weights"]) == (name, "random:0")
            got = np.zeros(1000)
            for entry in form["predictions"]:
                got[entry["class_id"]] = entry["probability"]
            assert np.abs(got - probabilities).max() <= 1e-5
            best = [entry["class_id"] for entry in form["predictions"][:5]]
            margin = np.sort(probabilities)[-6:]
            if np.diff(margin).min() > 1e-7:  # closer than that, float32 itself does not know the order
                assert best == np.argsort(-probabilities)[:5].tolist()
        batch = HTTP.post(
            server.url + "/predict/batch?top_k=5", files=[("files", p.read_bytes()) for p in SAMPLES]
        )
        for entry, probabilities in zip(batch.json()["results"], wanted, strict=True):
            for prediction in entry["predictions"]:
                assert abs(prediction["probability"] - probabilities[prediction["class_id"]]) <= 1e-5


def test_densenet121() -> None:
    check("densenet121")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "densenet121"])
def test_variant(name: str) -> None:
    check(name)
