"""Mistakes that are easily made with these checkpoints: each must change the numbers of some fixture.

A fixture that a mistake slips past proves nothing about it, so this holds the fixtures themselves to account.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from service.errors import CheckpointError
from service.models import stems
from service.models.checkpoints import Checkpoint, resolve
from service.models.checkpoints.keras import layers as keras_layers
from service.models.loader import load
from service.preprocess import prepare
from tests.models.parity import FIXTURES, assert_close, channels_first
from tests.pictures import encode

Change = Callable[[Checkpoint], Checkpoint]


def _configured(**changes: Any) -> Change:
    return lambda checkpoint: replace(checkpoint, configuration=replace(checkpoint.configuration, **changes))


def _swapped(first: str, second: str) -> Change:
    def change(checkpoint: Checkpoint) -> Checkpoint:
        tensors = dict(checkpoint.state_dict)
        for key in checkpoint.state_dict:
            if re.search(rf"norm\w*\.{first}$", key):
                other = key.removesuffix(first) + second
                tensors[key], tensors[other] = tensors[other], tensors[key]
        return replace(checkpoint, state_dict=tensors)

    return change


def _scores(checkpoint: Checkpoint, inputs: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = load(checkpoint).network(inputs)
    return {"softmax": logits, "sigmoid": logits.sigmoid()}[checkpoint.activation]


def _expected(name: str) -> tuple[torch.Tensor, Any]:
    with np.load(FIXTURES / name / "expected.npz") as archive:
        inputs, older = archive["inputs"], "logits" in archive
        scores = archive["logits" if older else "scores"]
    nhwc = older and name.startswith("khub")
    return (channels_first(inputs) if nhwc else torch.from_numpy(inputs)), scores


@pytest.mark.parametrize(
    ("name", "change"),
    [
        pytest.param("khub_densenet_g8", _configured(padding="symmetric"), id="symmetric padding"),
        pytest.param("khub_densenet_g8", _configured(epsilon=1e-3), id="Keras's default epsilon"),
        pytest.param("khub_densenet_g8", _swapped("weight", "bias"), id="gamma and beta swapped"),
        pytest.param("khub_densenet_g8", _swapped("running_mean", "running_var"), id="statistics swapped"),
        pytest.param("khub_densenet_g8", _configured(head_pooling="max"), id="max for avg"),
        pytest.param("khub_densenet_sharded", _configured(head_pooling="avg"), id="avg for max"),
        pytest.param("khub_vgg_avg", _configured(head_pooling="max"), id="max for avg in a VGG"),
        pytest.param("khub_vgg_avg", _configured(head="adaptive"), id="adaptive where KerasHub slides"),
        pytest.param("khub_vgg_avg", _configured(head="legacy", head_activation="linear"), id="legacy head"),
        pytest.param("timm_vgg", _configured(head="adaptive"), id="adaptive where timm slides"),
        pytest.param("timm_densenetblur", _configured(blur=False), id="no blur"),
    ],
)
def test_a_mistake_in_the_network_is_caught(name: str, change: Change) -> None:
    checkpoint = resolve(str(FIXTURES / name), "densenet121")
    inputs, scores = _expected(name)
    assert_close(_scores(checkpoint, inputs), scores)
    with pytest.raises(AssertionError, match="off by"):
        assert_close(_scores(change(checkpoint), inputs), scores)


def test_the_odd_pixel_first_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(input: torch.Tensor, kernel: int, stride: int, value: float) -> torch.Tensor:
        sides: list[int] = []
        for size in (input.shape[-1], input.shape[-2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            sides += [total - total // 2, total // 2]
        return F.pad(input, sides, value=value)

    monkeypatch.setattr(stems, "_pad_same", first)
    inputs, scores = _expected("khub_densenet_g8")
    with pytest.raises(AssertionError, match="off by"):
        assert_close(_scores(resolve(str(FIXTURES / "khub_densenet_g8"), "densenet121"), inputs), scores)


def test_a_map_flattened_as_torch_does_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = keras_layers.dense
    monkeypatch.setattr(
        "service.models.checkpoints.keras.hub_heads.dense", lambda layer, name, *size: dense(layer, name)
    )
    checkpoint = resolve(str(FIXTURES / "khub_vgg_flatten_softmax"), "vgg11")
    inputs, scores = _expected("khub_vgg_flatten_softmax")
    with pytest.raises(AssertionError, match="off by"):
        assert_close(_scores(checkpoint, inputs).softmax(dim=1), scores)


def test_layers_sorted_as_strings_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = keras_layers.layers

    def by_name(arrays: Any, kind: str, *prefix: str) -> Any:
        found = layers(arrays, kind, *prefix)
        return [found[number] for number in sorted(range(len(found)), key=lambda n: "" if n == 0 else str(n))]

    monkeypatch.setattr(keras_layers, "layers", by_name)
    with pytest.raises(CheckpointError, match="their network needs"):
        load(resolve(str(FIXTURES / "khub_densenet_sharded"), "densenet121"))


def test_half_the_channels_for_the_compression_ratio_is_caught() -> None:
    checkpoint = resolve(str(FIXTURES / "khub_densenet_sharded"), "densenet121")
    with pytest.raises(CheckpointError, match=r"transition1\.conv"):
        load(_configured(compression=0.5)(checkpoint))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param("khub_vgg_avg", {"crop": (37, 45)}, id="width and height swapped"),
        pytest.param("khub_vgg_avg", {"fit": "stretch"}, id="no aspect crop"),
        pytest.param("khub_vgg_avg", {"antialias": True}, id="antialiased"),
        pytest.param(
            "khub_vgg_avg", {"fit": "resize-crop", "resize": 45, "antialias": True}, id="torchvision's"
        ),
        pytest.param("khub_vgg_max_sigmoid", {"fit": "crop-resize"}, id="cropped for padded"),
        pytest.param("khub_densenet_g8", {"interpolation": "bicubic"}, id="another interpolation"),
        pytest.param("timm_densenetblur", {"resize": 45}, id="not squashed"),
        pytest.param("timm_densenetblur", {"interpolation": "bicubic"}, id="not Lanczos"),
        pytest.param("tv_densenet_old_keys/model.pth", {"resize": 224}, id="no margin"),
    ],
)
def test_a_mistake_in_the_preprocessing_is_caught(name: str, changes: dict[str, Any]) -> None:
    preprocessing = resolve(str(FIXTURES / name), "densenet121").preprocessing
    with np.load(FIXTURES / name.partition("/")[0] / "expected.npz") as archive:
        picture = encode(Image.fromarray(archive["image"]), "PNG")
    right, wrong = (_pixels(picture, spec) for spec in (preprocessing, replace(preprocessing, **changes)))
    assert right.shape != wrong.shape or (right != wrong).mean() > 0.5


def _pixels(picture: bytes, spec: Any) -> Any:
    pixels = np.empty(spec.shape, np.uint8)
    prepare(picture, spec, pixels, max_pixels=10**6)
    return pixels
