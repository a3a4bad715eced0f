"""Every layer that a network can have is the same in OpenVINO as in torch."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from service.models import loader
from service.models.configuration import Configuration, DenseNetConfig, Head, VGGConfig
from service.models.head import (
    Activate,
    Adapt,
    Convolution,
    Flatten,
    Layer,
    Linear,
    Nonlinearity,
    Norm,
    Pool,
    Pooling,
)
from service.models.openvino_import import openvino
from service.models.runtimes import conversion, translation
from tests import tiny

CLASSES, WIDTH = 5, 6

poolings = st.sampled_from(get_args(Pooling))
activations = st.builds(Activate, st.sampled_from(get_args(Nonlinearity)), st.sampled_from([0.01, 0.2, 1.0]))


@st.composite
def heads(draw: st.DrawFn, width: int) -> tuple[Layer, ...]:
    """Layers of its own: what changes maps, how they become a vector, what changes that."""
    layers: list[Layer] = []
    if draw(st.booleans()):
        layers.append(Adapt(draw(st.tuples(st.integers(1, 9), st.integers(1, 9))), draw(st.booleans())))
    if draw(st.booleans()):
        kernel = draw(st.sampled_from([1, 3]))
        bias = draw(st.booleans())
        layers += [Convolution("0", width * kernel**2, WIDTH, kernel, kernel // 2, bias), draw(activations)]
        width = WIDTH
    pooling = draw(poolings)
    layers.append(Pool(pooling))
    width *= 2 if pooling.startswith("cat") else 1
    if draw(st.booleans()):
        layers.append(Norm("1", width, draw(st.sampled_from([1e-5, 1e-3]))))
    layers += [Linear("2", width, WIDTH, draw(st.booleans())), draw(activations)]
    return (*layers, Linear("3", WIDTH, CLASSES))


@st.composite
def densenets(draw: st.DrawFn) -> DenseNetConfig:
    blocks = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    options = {
        "growth_rate": 4,
        "stem_width": draw(st.sampled_from([4, 6])),
        "compression": draw(st.sampled_from([0.5, 1.0])),
        "stem_kernel": draw(st.sampled_from([3, 7])),
        "stem_stride": draw(st.sampled_from([1, 2])),
        "stem_pool": draw(st.booleans()),
        "num_classes": CLASSES,
        "channels": draw(st.sampled_from([1, 3])),
        "head_pooling": draw(poolings),
        "padding": draw(st.sampled_from(["symmetric", "same"])),
        "epsilon": draw(st.sampled_from([1e-5, 1e-3])),
        "deep_stem": draw(st.sampled_from([None, (4, 6)])),
        "blur": draw(st.booleans()),
    }
    plain = DenseNetConfig(blocks, **options)
    return (
        DenseNetConfig(blocks, **options, layers=draw(heads(plain.width))) if draw(st.booleans()) else plain
    )


@st.composite
def vggs(draw: st.DrawFn) -> VGGConfig:
    return VGGConfig(
        stages=((4,), (4, WIDTH)),
        batch_norm=draw(st.booleans()),
        hidden=8,
        hidden_first=draw(st.sampled_from([None, 7])),
        num_classes=CLASSES,
        channels=draw(st.sampled_from([1, 3])),
        head=draw(st.sampled_from(get_args(Head))),
        head_pooling=draw(poolings),
        head_activation=draw(st.sampled_from(get_args(Nonlinearity))),
        image_size=(36, 36),
        layers=draw(st.one_of(st.just(()), heads(WIDTH))),
    )


def check(configuration: Configuration, side: int) -> None:
    model = loader.load(tiny.of(configuration, side))
    image = (side, side, 3)
    converted = conversion.convert(model, image)
    compiled = openvino.Core().compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    pixels = np.random.default_rng(3).integers(0, 256, (3, *image), np.uint8)
    with torch.inference_mode():
        features = model.forward_features(torch.from_numpy(pixels))
        logits = model.forward_head(features)
    got = compiled(pixels)
    for found, wanted in ((got[0], features.numpy()), (got[1], logits.numpy())):
        assert found.shape == wanted.shape
        allowed = 1e-4 * max(1.0, float(np.abs(wanted).max()))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=allowed)


@settings(max_examples=12, deadline=None)
@given(densenets(), st.sampled_from([32, 37]))
def test_any_densenet(configuration: DenseNetConfig, side: int) -> None:
    check(configuration, side)


@settings(max_examples=12, deadline=None)
@given(vggs())
def test_any_vgg(configuration: VGGConfig) -> None:
    check(configuration, 36)


@pytest.mark.parametrize("by", get_args(Nonlinearity))
def test_every_nonlinearity(by: Nonlinearity) -> None:
    layers = (Flatten(), Linear("0", WIDTH * 81, 8), Activate(by, 0.3), Linear("1", 8, CLASSES))
    check(VGGConfig(stages=((4,), (WIDTH,)), num_classes=CLASSES, layers=layers), 36)


def test_a_layer_that_is_not_known_is_said_by_its_name() -> None:
    model = loader.load(tiny.checkpoint())
    model.network.features.add_module("another", nn.Hardtanh())
    with pytest.raises(conversion.ConversionError, match="no translation of Hardtanh"):
        conversion.convert(model, (tiny.SIDE, tiny.SIDE, 3))


def test_a_network_of_other_channels_than_the_image_is_refused() -> None:
    model = loader.load(tiny.checkpoint())
    with pytest.raises(TypeError, match="3 channels"):
        translation.network(model, (8, 8, 4), has_head=True, features=None)
