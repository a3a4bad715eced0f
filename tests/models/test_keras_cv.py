"""KerasCV's three kinds of files, written here layer by layer for a VGG16 with few filters.

That the layouts are KerasCV's own is held by test_originals.py, where KerasCV is.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from service.errors import CheckpointError
from service.models.building import describe
from service.models.checkpoints import directory, resolve
from service.models.configuration import VGGConfig
from service.models.loader import load
from service.models.network import build
from service.models.vgg import VGG
from service.observability.card import ModelCard

SIZE = (32, 64)
CONFIGURATION = VGGConfig.from_stackwise(
    (2, 2, 3, 3, 3), (2, 3, 3, 4, 5), head="flatten", hidden=6, num_classes=4, image_size=SIZE
)
NAMES = [f"block{b}_conv{c}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for c in range(1, n + 1)]


@pytest.fixture
def network() -> VGG:
    torch.manual_seed(0)
    network = build(CONFIGURATION)
    assert isinstance(network, VGG)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    network.eval().requires_grad_(False)
    return network


def keras_arrays(network: VGG, *, top: bool) -> dict[str, list[Any]]:
    """Kernel and bias of every layer, as Keras has them, under its layer's name."""
    convolutions = [module for module in network.features if isinstance(module, torch.nn.Conv2d)]
    arrays = {
        name: [layer.weight.permute(2, 3, 1, 0).numpy(), layer.bias.numpy()]
        for name, layer in zip(NAMES, convolutions, strict=True)
        if layer.bias is not None
    }
    if top:
        for name, number in (("fc1", 0), ("fc2", 3), ("predictions", 6)):
            layer = network.classifier.get_submodule(str(number))
            kernel = layer.weight.numpy()  # type: ignore[operator]
            if name == "fc1":
                kernel = kernel.reshape(6, 5, 1, 2).transpose(0, 2, 3, 1).reshape(6, -1)
            arrays[name] = [kernel.T, layer.bias.numpy()]  # type: ignore[operator]
    return arrays


def weights_h5(target: Any, arrays: dict[str, list[Any]], *, rescaling: bool) -> None:
    with h5py.File(target, "w") as file:
        for index, name in enumerate(arrays):
            kind, number = ("conv2d", index) if index < 13 else ("dense", index - 13)
            for variable, array in enumerate(arrays[name]):
                file[f"layers/{kind}{f'_{number}' * bool(number)}/vars/{variable}"] = array
        if rescaling:
            file.create_group("layers/rescaling/vars")
        # Keras notes there what the model is called, and KerasCV calls this one so.
        file.create_group("vars").attrs["name"] = "VGG16"


def config(*, top: bool, rescaling: bool, activation: str | None = "softmax") -> dict[str, Any]:
    return {
        "class_name": "VGG16Backbone",
        "config": {
            "include_rescaling": rescaling,
            "include_top": top,
            "input_shape": [*SIZE, 3],
            "pooling": None,
            "num_classes": 4 if top else None,
            "classifier_activation": activation,
        },
        "registered_name": "keras_cv>VGG16Backbone",
    }


def write(path: Path, network: VGG, document: dict[str, Any]) -> Path:
    settings = document["config"]
    arrays = keras_arrays(network, top=settings["include_top"])
    if path.name.endswith(".weights.h5"):
        weights_h5(path, arrays, rescaling=settings["include_rescaling"])
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file.attrs["model_config"] = json.dumps(document)
            for name, (kernel, bias) in arrays.items():
                file[f"model_weights/{name}/{name}/kernel:0"] = kernel
                file[f"model_weights/{name}/{name}/bias:0"] = bias
    else:
        buffer = io.BytesIO()
        weights_h5(buffer, arrays, rescaling=settings["include_rescaling"])
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", json.dumps(document))
            archive.writestr("model.weights.h5", buffer.getvalue())
    return path


FILES = ["vgg.keras", "vgg.weights.h5", "vgg.h5"]


def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (2, *SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", FILES)
def test_a_model_with_its_top_gives_the_same_logits(tmp_path: Path, network: VGG, name: str) -> None:
    path = write(tmp_path / name, network, config(top=True, rescaling=True))
    # A bare weights file says nothing of the shape; this one is not square.
    checkpoint = resolve(f"{path}?image_size=32x64" if "weights" in name else str(path), "vgg16")
    assert checkpoint.configuration == CONFIGURATION
    assert (checkpoint.name, checkpoint.preprocessing.crop) == ("vgg", SIZE)
    assert len(checkpoint.classes or ()) == 4
    with torch.inference_mode():
        expected = network(pixels().permute(0, 3, 1, 2).float() / 255)
        torch.testing.assert_close(load(checkpoint)(pixels()), expected)


@pytest.mark.parametrize("name", FILES)
def test_without_top_and_rescaling_it_has_features_of_raw_pixels(
    tmp_path: Path, network: VGG, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / name, network, config(top=False, rescaling=False))
    checkpoint = resolve(f"{path}?image_size=32x64", "vgg16")
    assert checkpoint.classes is None
    assert "?preprocessing=" in caplog.text
    with torch.inference_mode():
        expected = network.forward_features(pixels().permute(0, 3, 1, 2).float())
        torch.testing.assert_close(
            load(checkpoint).forward_features(pixels()), expected, rtol=1e-4, atol=1e-3
        )


def test_caffes_channels_are_turned_round(tmp_path: Path, network: VGG) -> None:
    path = write(tmp_path / "vgg.keras", network, config(top=True, rescaling=False))
    blue_first = pixels().float().flip(-1) - torch.tensor([103.939, 116.779, 123.68])
    with torch.inference_mode():
        expected = network(blue_first.permute(0, 3, 1, 2))
        actual = load(resolve(f"{path}?preprocessing=caffe", "vgg16"))(pixels())
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    ("activation", "option", "expected"),
    [
        ("softmax", "", "softmax"),
        (None, "", "softmax"),
        ("sigmoid", "", "sigmoid"),
        ("relu", "?classifier_activation=sigmoid", "sigmoid"),
    ],
)
def test_the_activation_is_the_models_or_the_operators(
    tmp_path: Path, network: VGG, activation: str | None, option: str, expected: str
) -> None:
    path = write(tmp_path / "vgg.keras", network, config(top=True, rescaling=True, activation=activation))
    assert resolve(f"{path}{option}", "vgg16").activation == expected


def test_weights_alone_are_not_served_at_a_size_that_was_guessed(tmp_path: Path) -> None:
    square = build(replace(CONFIGURATION, image_size=(64, 64)))
    assert isinstance(square, VGG)
    arrays = keras_arrays(square.requires_grad_(False), top=False)
    for name, rows, columns in (("fc1", 4 * 5, 6), ("fc2", 6, 6), ("predictions", 6, 4)):
        arrays[name] = [np.zeros((rows, columns), "f4"), np.zeros(columns, "f4")]
    weights_h5(tmp_path / "vgg.weights.h5", arrays, rescaling=True)
    with pytest.raises(CheckpointError, match=r"add \?image_size=HEIGHTxWIDTH"):
        resolve(str(tmp_path / "vgg.weights.h5"), "vgg16")
    checkpoint = resolve(f"{tmp_path / 'vgg.weights.h5'}?image_size=65x70", "vgg16")
    assert checkpoint.preprocessing.crop == (65, 70)


def _without_top(path: Path, network: VGG) -> None:
    write(path, network, config(top=True, rescaling=True))
    with zipfile.ZipFile(path) as archive:
        weights = archive.read("model.weights.h5")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config(top=False, rescaling=True)))
        archive.writestr("model.weights.h5", weights)


def _other_class(path: Path, network: VGG) -> None:
    write(path, network, config(top=True, rescaling=True) | {"class_name": "Functional"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path, network: path.write_bytes(b"PK\x03\x04"), "is a damaged archive"),
        (lambda path, network: zipfile.ZipFile(path, "w").close(), "is of no kind known here, or damaged"),
        (_without_top, "contradicts itself: its configuration has no layer for"),
        (_other_class, "not as Keras writes it"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, network: VGG, spoil: Any, message: str) -> None:
    spoil(tmp_path / "vgg.keras", network)
    with pytest.raises(CheckpointError, match=message):
        resolve(str(tmp_path / "vgg.keras"), "vgg16")


def test_a_head_for_another_shape_asks_for_the_size(tmp_path: Path, network: VGG) -> None:
    path = write(tmp_path / "vgg.weights.h5", network, config(top=True, rescaling=True))
    with pytest.raises(CheckpointError, match=r"add \?image_size=HEIGHTxWIDTH"):
        resolve(str(path), "vgg16")
    with pytest.raises(CheckpointError, match="a map of 3x3 gives others"):
        resolve(f"{path}?image_size=96x96", "vgg16")


def test_weights_without_convolutions_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:
        file["layers/batch_normalization/vars/0"] = np.zeros(3, "f4")
    with pytest.raises(CheckpointError, match="holds no convolutions"):
        resolve(str(tmp_path / "model.weights.h5"), "vgg16")


def test_an_option_for_another_kind_of_weights_is_refused(tmp_path: Path, network: VGG) -> None:
    path = write(tmp_path / "vgg.keras", network, config(top=True, rescaling=True))
    torch.save(network.state_dict(), tmp_path / "vgg.pth")
    for source in (f"{path}?legacy_head=true", f"{tmp_path / 'vgg.pth'}?test_size=true"):
        with pytest.raises(CheckpointError, match="does not apply to this kind of weights"):
            resolve(source, "vgg16")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("colour=red", "has no option 'colour'; there are legacy_head"),
        ("legacy_head=perhaps", "'perhaps' is no value for the option legacy_head"),
        ("image_size=32", "'32' is no value for the option image_size"),
        ("preprocessing=none", "'none' is no value"),
    ],
)
def test_an_option_that_does_not_exist_is_refused(query: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        resolve(f"vgg.keras?{query}", "vgg16")


@pytest.mark.parametrize(("pooling", "expected"), [("max", "max"), ("avg", "avg"), (None, "avg")])
@pytest.mark.parametrize("name", ["vgg.keras", "vgg.h5"])
def test_its_pooling_is_what_features_pool_by(
    tmp_path: Path, network: VGG, name: str, pooling: str | None, expected: str
) -> None:
    document = config(top=False, rescaling=True)
    document["config"]["pooling"] = pooling
    checkpoint = resolve(str(write(tmp_path / name, network, document)), "vgg16")
    assert checkpoint.feature_pooling == expected
    directory.write(checkpoint, tmp_path / "ours")
    assert resolve(str(tmp_path / "ours"), "vgg16").feature_pooling == expected
    card = describe(checkpoint, load(checkpoint))
    assert ModelCard.from_bytes(card.to_bytes()).feature_pooling == expected


def test_a_model_of_a_class_of_ones_own_is_told_what_to_do(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "own.weights.h5", "w") as file:
        file["body/layers/conv2d/vars/0"] = np.ones((3, 3, 3, 4), "f4")
    with zipfile.ZipFile(tmp_path / "own.keras", "w") as archive:
        archive.writestr("config.json", json.dumps({"class_name": "Own", "config": {"trainable": True}}))
        archive.write(tmp_path / "own.weights.h5", "model.weights.h5")
    for name in ("own.weights.h5", "own.keras"):
        with pytest.raises(CheckpointError, match="a class of somebody's own"):
            resolve(str(tmp_path / name), None)
