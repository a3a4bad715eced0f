"""KerasHub presets that are incomplete, contradict themselves, or are something else."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from service.errors import CheckpointError
from service.models.checkpoints import resolve
from service.models.loader import load
from tests.models.parity import FIXTURES, assert_close


def preset(tmp_path: Path, name: str = "khub_vgg_avg") -> Path:
    return Path(shutil.copytree(FIXTURES / name, tmp_path / name))


def change(path: Path, *keys: str, value: Any) -> None:
    """Set one value within a JSON file."""
    document = json.loads(path.read_text())
    inner = document
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("missing", ["task.json", "task.weights.h5"])
def test_without_a_head_it_has_features_only(tmp_path: Path, missing: str) -> None:
    folder = preset(tmp_path)
    (folder / missing).unlink()
    checkpoint = resolve(str(folder), "vgg11")
    assert (checkpoint.classes, checkpoint.configuration.num_classes) == (None, 0)
    model = load(checkpoint)
    pixels = torch.zeros(1, *checkpoint.preprocessing.shape, dtype=torch.uint8)
    assert model.forward_features(pixels).shape[:2] == (1, 12)
    with pytest.raises(CheckpointError, match="no classification head; it serves features only"):
        model(pixels)


def test_preprocessing_is_looked_for_in_three_files(tmp_path: Path) -> None:
    expected = resolve(str(FIXTURES / "khub_vgg_avg"), "vgg11").preprocessing
    folder = preset(tmp_path)
    change(folder / "task.json", "config", "preprocessor", value=None)
    assert resolve(str(folder), "vgg11").preprocessing == expected
    (folder / "preprocessor.json").unlink()
    assert resolve(str(folder), "vgg11").preprocessing == expected
    (folder / "image_converter.json").unlink()
    assert resolve(str(folder), "vgg11").preprocessing.crop == (224, 224)


def test_really_old_converters_say_mean_and_variance(tmp_path: Path) -> None:
    folder = preset(tmp_path)
    old = {"height": 45, "width": 37, "scale": 1 / 255, "mean": [0.5] * 3, "variance": [0.04] * 3}
    change(folder / "task.json", *CONVERTER, value=old)
    preprocessing = resolve(str(folder), "vgg11").preprocessing
    assert preprocessing.crop == (45, 37)
    np.testing.assert_allclose([preprocessing.mean, preprocessing.std], [[0.5] * 3, [0.2] * 3])


def test_a_backbone_beside_the_head_is_ignored(tmp_path: Path) -> None:
    """KerasHub before 0.30 wrote one into task.weights.h5."""
    folder = preset(tmp_path)
    with h5py.File(folder / "task.weights.h5", "a") as file:
        for index in range(3):
            file[f"layers/vgg_backbone/layers/conv2d_{index}/vars/0"] = np.full((3, 3, 1, 1), np.nan, "f4")
            file[f"layers/vgg_backbone/layers/dense_{index}/vars/0"] = np.full((3, 3), np.nan, "f4")
    with np.load(folder / "expected.npz") as archive:
        inputs, logits = archive["inputs"].transpose(0, 3, 1, 2).copy(), archive["logits"]
    with torch.inference_mode():
        assert_close(load(resolve(str(folder), "vgg11")).network(torch.from_numpy(inputs)), logits)


def test_an_old_head_is_pointed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = preset(tmp_path)
    change(folder / "metadata.json", "keras_hub_version", value="0.26.1")
    with caplog.at_level(logging.WARNING):
        resolve(str(folder), "vgg11")
    assert "?legacy_head=true" in caplog.text
    configuration = resolve(f"{folder}?legacy_head=true", "vgg11").configuration
    assert configuration.head == "legacy"  # type: ignore[union-attr]


def _write_json(name: str, *keys: str, value: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / name, *keys, value=value)


def _shards(value: Any) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "model.weights.h5").unlink()
        (folder / "model.weights.json").write_text(json.dumps({"weight_map": value}))

    return fill


def _without(group: str) -> Callable[[Path], None]:
    def delete(folder: Path) -> None:
        with h5py.File(folder / "model.weights.h5", "a") as file:
            del file[group]

    return delete


CONVERTER = ("config", "preprocessor", "config", "image_converter", "config")

SPOILT: list[tuple[Callable[[Path], Any], str]] = [
    (lambda folder: (folder / "config.json").write_text("{}"), "of an unknown format"),
    (_write_json("config.json", "registered_name", value="keras_hub>ResNetBackbone"), "is a ResNetBackbone"),
    (_write_json("config.json", "config", value={}), "does not describe its backbone"),
    (_write_json("config.json", "config", "stackwise_num_filters", value=[8]), "does not describe its back"),
    (_write_json("config.json", "config", "stackwise_num_repeats", value=[1, 3]), "are 3 and its config"),
    (_write_json("config.json", "config", "stackwise_num_filters", value=[8, 13]), "their network needs"),
    (_write_json("config.json", "config", "image_shape", value=[64, 64, 3]), "save the preset with one size"),
    (lambda folder: (folder / "task.json").write_text("{"), r"task\.json .* cannot be read as JSON"),
    (_write_json("task.json", "registered_name", value="keras_hub>VGGDetector"), "no VGGImageClassifier"),
    (_write_json("task.json", "config", value={}), "does not describe a classifier"),
    (_write_json("task.json", "config", "num_classes", value=6), "says 6 classes and its head has 5"),
    (_write_json("task.json", "config", "activation", value="relu"), "ends in 'relu' cannot be served"),
    (_write_json("task.json", "config", "pooling", value="median"), "pools by 'median'"),
    (_write_json("task.json", *CONVERTER, "image_size", value=[24, 24]), "needs a map of 7x7"),
    (_write_json("task.json", *CONVERTER, "scale", value=[0, 1, 1]), "image converter"),
    (_write_json("task.json", *CONVERTER, "interpolation", value="lanczos5"), "not usable"),
    (lambda folder: (folder / "model.weights.h5").unlink(), r"lacks its file model\.weights\.h5"),
    (lambda folder: shutil.copy(folder / "model.weights.h5", folder / "task.weights.h5"), "none that Keras"),
    (_shards({"/a": "../other/model.weights.h5"}), "outside its own folder"),
    (_shards({"/a": "/etc/model.weights.h5"}), "outside its own folder"),
    (_shards({"/a": "..\\model.weights.h5"}), "outside its own folder"),
    (_shards({"/a": ["model_00000.weights.h5"]}), r"lacks its file model_00000\.weights\.h5"),
    (_shards({"/a": "config.json"}), r"names a shard that is no \.h5 file"),
    (_shards({"/a": 3}), r"names a shard that is no \.h5 file"),
    (_shards([]), "has no weight_map"),
    (_without("layers/conv2d_1"), "are 2 and its configuration wants 3"),
    (_without("layers/conv2d_1/vars/0"), "lacks an array"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILT)
def test_a_spoilt_preset_is_refused(tmp_path: Path, spoil: Callable[[Path], Any], message: str) -> None:
    folder = preset(tmp_path)
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        load(resolve(str(folder), "vgg11"))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = preset(tmp_path, "khub_densenet_sharded")
    (folder / "model_00001.weights.h5").unlink()
    with pytest.raises(CheckpointError, match=r"lacks its file model_00001\.weights\.h5"):
        resolve(str(folder), "densenet121")
