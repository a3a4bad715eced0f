"""One small checkpoint of each origin, and the numbers that the original library made with it."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from service.models.checkpoints import Checkpoint, resolve, write
from service.models.configuration import DenseNetConfig
from service.models.loader import load
from service.preprocess import prepare
from tests.models.parity import FIXTURES, Array, assert_close, channels_first, outputs

ORIGINS = {
    "khub_vgg_avg": "khub_vgg_avg",
    "khub_densenet_g8": "khub_densenet_g8",
    "timm_vgg": "timm_vgg",
    "tv_densenet_old_keys": "tv_densenet_old_keys/model.pth",
}


@pytest.fixture(params=ORIGINS)
def fixture(request: pytest.FixtureRequest) -> tuple[Checkpoint, dict[str, Array]]:
    name: str = request.param
    with np.load(FIXTURES / name / "expected.npz") as archive:
        expected = {key: archive[key] for key in archive}
    if name.startswith("khub"):
        for key in ("inputs", "features", "pre"):
            expected[key] = channels_first(expected[key]).numpy()
    return resolve(str(FIXTURES / ORIGINS[name]), "densenet121"), expected


def test_features_logits_and_probabilities(fixture: tuple[Checkpoint, dict[str, Array]]) -> None:
    checkpoint, expected = fixture
    features, logits = outputs(load(checkpoint), torch.from_numpy(expected["inputs"]))
    assert_close(features, expected["features"])
    assert_close(features.mean(dim=(2, 3)), expected["features_avg"])
    assert_close(features.amax(dim=(2, 3)), expected["features_max"])
    assert_close(logits, expected["logits"])
    assert_close(logits.softmax(dim=1), expected["probabilities"])
    assert checkpoint.activation == "softmax"
    assert checkpoint.classes is not None
    assert len(checkpoint.classes) == logits.shape[1]


def test_image_in_logits_out(fixture: tuple[Checkpoint, dict[str, Array]]) -> None:
    checkpoint, expected = fixture
    png = io.BytesIO()
    Image.fromarray(expected["image"]).save(png, "PNG")
    pixels = np.empty(checkpoint.preprocessing.shape, np.uint8)
    prepare(png.getvalue(), checkpoint.preprocessing, pixels, max_pixels=10**6)
    model = load(checkpoint)
    with torch.inference_mode():
        assert_close(model.normalise(torch.from_numpy(pixels)[None]), expected["pre"])
        assert_close(model(torch.from_numpy(pixels)[None]), expected["pre_out"])


def test_our_own_directory_keeps_every_origins_numbers(
    fixture: tuple[Checkpoint, dict[str, Array]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    checkpoint, expected = fixture
    directory = tmp_path_factory.mktemp("ours")
    write(checkpoint, directory)
    again = resolve(str(directory), "densenet121")
    assert replace(again, state_dict={}, source="", sha256="") == replace(
        checkpoint, state_dict={}, source="", sha256=""
    )
    _, logits = outputs(load(again), torch.from_numpy(expected["inputs"]))
    assert_close(logits, expected["logits"])


@pytest.mark.parametrize(("size", "equal"), [(65, True), (61, True), (64, False), (66, False), (67, False)])
def test_the_same_densenet_answers_otherwise_in_torchvision_and_in_kerashub(size: int, equal: bool) -> None:
    """TensorFlow's padding is symmetric only where the side leaves a rest of 1 when divided by 4; 224 does not."""
    theirs = resolve(str(FIXTURES / "khub_densenet_g8"), "densenet121")
    assert isinstance(theirs.configuration, DenseNetConfig)
    torchvisions = replace(theirs.configuration, padding="symmetric", epsilon=1e-5)
    inputs = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    _, one = outputs(load(theirs), inputs)
    _, other = outputs(load(replace(theirs, configuration=torchvisions)), inputs)
    assert bool((one - other).abs().max() < 1e-3) == equal


def test_timm_repositories_bring_their_labels() -> None:
    checkpoint = resolve(str(FIXTURES / "timm_vgg"), "vgg11")
    assert [entry.label for entry in checkpoint.classes or ()] == list("abcde")
    assert (checkpoint.name, checkpoint.source) == ("timm_vgg", "timm vgg11, directory timm_vgg")
    assert (checkpoint.preprocessing.resize, checkpoint.preprocessing.crop) == (73, (64, 64))


def test_presets_bring_their_own_preprocessing() -> None:
    preprocessing = resolve(str(FIXTURES / "khub_densenet_g8"), "densenet121").preprocessing
    assert (preprocessing.fit, preprocessing.crop) == ("crop-resize", (64, 48))
    assert not preprocessing.antialias
    np.testing.assert_allclose(preprocessing.mean, (0.485, 0.456, 0.406), rtol=1e-6)
    np.testing.assert_allclose(preprocessing.std, (0.229, 0.224, 0.225), rtol=1e-6)
