"""Checkpoints that the original libraries made, against what these computed with them.

The small ones lie in tests/fixtures and always run. The others are made on the spot by `originals`, in an
environment with timm, keras_hub or keras_cv (``make test-originals``). Those of KerasHub before 0.27 answer
with the head of that time, so there the same files are asked for with ``?legacy_head=true``.
"""

from __future__ import annotations

import io
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from service.models.checkpoints import Checkpoint, resolve
from service.models.loader import Uint8Model, load
from service.preprocess import prepare
from tests.models import originals
from tests.models.parity import FIXTURES, Array, assert_close, outputs

LIBRARIES = {"keras": "keras", "khub": "keras-hub", "kcv": "keras-cv", "timm": "timm", "tv": "torchvision"}


@pytest.mark.parametrize("name", originals.SMALL)
def test_fixture(name: str) -> None:
    _compare(FIXTURES / name)


@pytest.mark.originals
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*originals.SMALL, *originals.LARGE])
def test_original(name: str, tmp_path: Path) -> None:
    try:
        version(LIBRARIES[name.partition("_")[0]])
    except PackageNotFoundError:
        pytest.skip("this environment lacks the original library")
    legacy = name.startswith("khub") and _saved_by_old_keras_hub()
    if legacy and name not in originals.OF_2024:
        pytest.skip("KerasHub before 0.27 cannot make this one")
    originals.make(name, tmp_path / name)
    _compare(tmp_path / name, legacy=legacy)


def _saved_by_old_keras_hub() -> bool:
    return tuple(int(part) for part in version("keras-hub").split(".")[:2]) < (0, 27)


def _compare(folder: Path, *, legacy: bool = False) -> None:
    with np.load(folder / "expected.npz") as archive:
        expected = {key: archive[key] for key in archive}
    if "files" in expected:
        _compare_keras(folder, expected)
        return
    if "pixels" in expected:
        _compare_keras_cv(folder, expected)
        return
    pickled = folder / "model.pth"
    model_name = folder.name.removeprefix("tv_")
    checkpoint = resolve(
        str(pickled if pickled.exists() else folder) + ("?legacy_head=true" if legacy else ""),
        model_name if pickled.exists() else "densenet121",
    )
    model = load(checkpoint)
    inputs = torch.from_numpy(expected["inputs"])
    with torch.inference_mode():
        features = model.network.forward_features(inputs)
    _compare_features(features.numpy(), expected["features"])
    if checkpoint.classes is None:
        return
    _, logits = outputs(model, inputs)
    activation = str(expected["activation"])
    assert checkpoint.activation == ("sigmoid" if activation == "sigmoid" else "softmax")
    compare = assert_close if folder.name in originals.SMALL else _assert_close_to_scale
    compare(_scores(logits, activation), expected["scores"])
    if "image" in expected:
        _compare_image(checkpoint, model, expected)


def _compare_features(actual: Array, expected: Array) -> None:
    """Pooled ones one by one, the whole map to scale."""
    assert_close(actual.mean(axis=(2, 3)), expected.mean(axis=(2, 3)))
    assert_close(actual.max(axis=(2, 3)), expected.max(axis=(2, 3)))
    _assert_close_to_scale(actual, expected)


def _assert_close_to_scale(actual: Any, expected: Array) -> None:
    """To the tolerance of the largest value.

    Of a VGG16's logits the smallest are sums of 25,088 larger terms, and the originals themselves are that
    far from what they give in float64: KerasHub's 1.9e-5, ours 0.9e-5 (khub_vgg16).
    """
    scale = max(1, float(np.abs(expected).max()))
    assert_close(np.asarray(actual) / scale, expected / scale)


def _scores(logits: torch.Tensor, activation: str) -> torch.Tensor:
    """What the original gives: probabilities only where its model ends in them."""
    return {"none": logits, "softmax": logits.softmax(dim=1), "sigmoid": logits.sigmoid()}[activation]


def _compare_image(checkpoint: Checkpoint, model: Uint8Model, expected: dict[str, Array]) -> None:
    png = io.BytesIO()
    Image.fromarray(expected["image"]).save(png, "PNG")
    pixels = np.empty(checkpoint.preprocessing.shape, np.uint8)
    prepare(png.getvalue(), checkpoint.preprocessing, pixels, max_pixels=10**6)
    normalised = model.normalise(torch.from_numpy(pixels)[None])
    differing = np.abs(normalised.numpy() - expected["pre"]) > 1e-4
    # A bicubic sum in float32 may fall on the other side of a half: one level in some ten thousand values.
    assert differing.mean() <= 1e-4
    with torch.inference_mode():
        logits = model.network(torch.from_numpy(expected["pre"]) if differing.any() else normalised)
    _assert_close_to_scale(_scores(logits, str(expected["activation"])), expected["pre_scores"])


def _compare_keras(folder: Path, expected: dict[str, Array]) -> None:
    """Pixels through each file's whole model: probabilities within 1e-5, pooled features to scale."""
    pixels = torch.from_numpy(expected["pixels"])
    for name in expected["files"]:
        checkpoint = resolve(str(folder / str(name)), "vgg16")
        model = load(checkpoint)
        with torch.inference_mode():
            if checkpoint.classes is None:
                features = model.forward_features(pixels)
                pooled = features.amax((2, 3)) if "densenet201" in folder.name else features.mean((2, 3))
                _assert_close_to_scale(pooled, expected["outputs"])
                continue
            assert checkpoint.preprocessing.crop == tuple(pixels.shape[1:3])
            logits = model(pixels)
        scores = logits.sigmoid() if checkpoint.activation == "sigmoid" else logits.softmax(dim=1)
        np.testing.assert_allclose(scores, expected["outputs"], rtol=0, atol=1e-5)
        assert 0.001 < expected["outputs"].max() < 0.999


def _compare_keras_cv(folder: Path, expected: dict[str, Array]) -> None:
    pixels = torch.from_numpy(expected["pixels"])
    size = "x".join(str(side) for side in expected["pixels"].shape[1:3])
    for name in ("model.keras", f"model.weights.h5?image_size={size}", "model.h5"):
        checkpoint = resolve(str(folder / name), "vgg16")
        model = load(checkpoint)
        with torch.inference_mode():
            if checkpoint.classes is not None:
                actual = model(pixels).softmax(dim=1)
            else:
                features = model.forward_features(pixels)
                actual = features.mean(dim=(2, 3)) if expected["outputs"].ndim == 2 else features
        _assert_close_to_scale(actual, expected["outputs"])
