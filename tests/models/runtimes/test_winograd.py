"""Winograd's convolutions are convolutions, and take the place of direct ones only where they are faster and right."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from service.models import loader
from service.models.building import describe
from service.models.checkpoints import Checkpoint
from service.models.configuration import VGGConfig
from service.models.runner import ModelRunner
from service.models.runtimes import artifact, converting, openvino, winograd
from service.models.runtimes.artifact import Converted, Graph
from service.models.runtimes.machine import Notes
from tests import tiny

#: Stages of 64 x 64, 32 x 32 and 16 x 16: the middle one is replaced but for its first convolution.
CONFIGURATION = VGGConfig(((8,), (128, 128, 128), (128,)), hidden=16, num_classes=10)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def pixels(side: int, count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).integers(0, 256, (count, side, side, 3), np.uint8))


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(1, 3),
    st.integers(0, 4),
)
def test_a_convolution_of_any_size_in_strips_of_any_height(
    channels: int, filters: int, height: int, width: int, count: int, tiles: int
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(channels * filters * height * width)
        convolution = nn.Conv2d(channels, filters, 3, padding=1)
        images = torch.randn(count, channels, height, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "_STRIP", tiles * 4 * 36 * -(-width // 4) * max(channels, filters))
        replacement = winograd.WinogradConv2d(convolution, height, width)
    assert max(strip.tiles for strip in replacement.strips) <= max(1, tiles)
    answer = replacement(images.permute(2, 3, 0, 1)).permute(2, 3, 0, 1)
    torch.testing.assert_close(
        answer,
        functional.conv2d(images, convolution.weight, convolution.bias, padding=1),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("side", [64, 50])
def test_the_features_of_a_vgg(batch_norm: bool, side: int) -> None:
    model = loader.load(tiny.of(replace(CONFIGURATION, batch_norm=batch_norm), side))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    features = winograd.features(model, side, side)
    assert features is not None
    wanted = model.forward_features(pixels(side, 3))
    torch.testing.assert_close(
        features(model.normalise(pixels(side, 3))), wanted, rtol=1e-4, atol=1e-4 * wanted.max().item()
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("stages", "side"),
    [
        (((8,), (64, 64)), 64),  # too few channels
        (((8,), (128, 128)), 32),  # maps of 16 x 16
        (((8,), (128, 128)), 144),  # maps of 72 x 72
    ],
)
def test_nothing_is_rewritten_where_it_does_not_pay(stages: tuple[tuple[int, ...], ...], side: int) -> None:
    configuration = VGGConfig(stages, hidden=16, num_classes=10)
    assert winograd.features(loader.load(tiny.of(configuration, side)), side, side) is None


def test_a_densenet_is_left_as_it_is() -> None:
    assert winograd.features(loader.load(tiny.checkpoint()), 64, 64) is None


def converted(chosen: Checkpoint, precision: str = "fp32") -> Converted:
    model = loader.load(chosen)
    return converting.load(model, chosen, describe(chosen, model), precision, lambda detail: None)


def filters(graph: Graph) -> bool:
    """Whether the model has Winograd's filters of 128 channels."""
    constants = (each for each in graph.model().get_ops() if each.get_type_name() == "Constant")
    return any(list(constant.get_output_shape(0)) == [6, 6, 128, 128] for constant in constants)


@pytest.mark.parametrize("faster", ["direct", "winograd"])
def test_the_faster_conversion_is_kept_and_answers_like_torch(
    faster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    took = iter([1.0, 2.0] if faster == "direct" else [2.0, 1.0])
    monkeypatch.setattr(openvino, "_milliseconds", lambda *_: next(took))
    chosen, images = tiny.of(CONFIGURATION, 64), pixels(64, 4)
    model = loader.load(chosen)
    for start in ("converted", "from the cache"):
        runtime = openvino.runtime(converted(chosen), "fp32", 2, (64, 64, 3), Notes((tmp_path / "notes",)))
        assert filters(runtime._graph) == (faster == "winograd"), start
        runner = ModelRunner(runtime, (64, 64, 3), 4, notes=runtime._notes)
        runner.warm_up()  # the second start takes its choice from what this one notes
        wanted = model(images)
        for executor in runtime.executors():
            for slots in ([2], [3, 0, 1]):
                answers = np.stack([answer.logits for answer in executor(images.numpy(), slots)])
                np.testing.assert_allclose(
                    answers, wanted[slots], rtol=0, atol=1e-4 * wanted.abs().max().item()
                )


def test_the_time_of_both_is_really_taken(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    openvino.runtime(converted(tiny.of(CONFIGURATION, 64)), "fp32", 1, (64, 64, 3))
    assert "ms by winograd.xml" in caplog.text


def test_bf16_has_too_few_digits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "features", lambda *_: pytest.fail("tried"))
    assert list(converted(tiny.of(CONFIGURATION, 64), "bf16").graphs) == [artifact.DIRECT]


def test_one_that_answers_otherwise_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(winograd, "_OUTPUT", 1.01 * winograd._OUTPUT)
    chosen = tiny.of(CONFIGURATION, 64)
    assert list(converted(chosen).graphs) == [artifact.DIRECT]
    assert "Winograd's convolutions are not used: its answers differ" in caplog.text
