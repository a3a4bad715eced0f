"""The temperature: found where the likelihood is the largest, and folded into any checkpoint's last layer."""

from __future__ import annotations

from dataclasses import replace
from typing import cast, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.cli.evaluate.score import BINS, Reliability
from service.cli.evaluate.temperature import fitted, folded, softmax
from service.errors import ConfigurationError
from service.models import loader
from service.models.checkpoints.checkpoint import Checkpoint
from service.models.configuration import Head, VGGConfig
from service.models.head import Activate, Convolution, Layer, Linear, Norm, Pool
from tests import tiny


def answers(temperature: float, images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and classes drawn from just the probabilities that the logits at ``temperature`` say."""
    rng = np.random.default_rng(seed)
    logits = (3 * rng.standard_normal((images, 12))).astype(np.float32)
    chances = softmax(logits.astype(np.float64) / temperature)
    truths = (chances.cumsum(axis=1) < rng.random((images, 1))).sum(axis=1)
    return logits, np.minimum(truths, 11)


def likelihood(logits: np.ndarray, truths: np.ndarray, temperature: float) -> float:
    chances = softmax(logits.astype(np.float64) / temperature)
    return float(np.log(chances[np.arange(len(truths)), truths]).mean())


@given(st.floats(0.3, 4), st.integers(0, 10**6))
def test_the_temperature_that_answers_were_drawn_with_is_found(temperature: float, seed: int) -> None:
    logits, truths = answers(temperature, 6000, seed)
    found = fitted(logits, truths)
    assert found == pytest.approx(temperature, rel=0.12)
    best = likelihood(logits, truths, found)
    assert all(likelihood(logits, truths, found * factor) <= best + 1e-9 for factor in (0.9, 0.99, 1.01, 1.1))


@given(st.floats(0.5, 2), st.floats(0.3, 3), st.integers(0, 10**6))
def test_what_is_added_to_logits_changes_nothing_and_what_multiplies_them_multiplies_it(
    temperature: float, factor: float, seed: int
) -> None:
    logits, truths = answers(temperature, 500, seed)
    shifted = logits * np.float32(factor) + np.float32(7)
    assert fitted(shifted, truths) == pytest.approx(factor * fitted(logits, truths), rel=1e-3)


@pytest.mark.parametrize("truth", ["always right", "always wrong"])
def test_photos_that_tell_no_temperature_are_refused(truth: str) -> None:
    logits, _ = answers(1.0, 100, 0)
    truths = logits.argmax(axis=1) if truth == "always right" else logits.argmin(axis=1)
    with pytest.raises(ConfigurationError, match="no temperature"):
        fitted(logits, truths)


def test_the_calibration_error_of_known_answers() -> None:
    reliability = Reliability()
    for right in (True, True, True, False):  # 0.9 where 0.75 would be right
        reliability.add(0.9, right)
    for right in (True, False, False, False):  # 0.3 where 0.25 would be right
        reliability.add(0.3, right)
    assert reliability.error == pytest.approx(100 * (0.15 + 0.05) / 2)
    assert reliability.confidence == pytest.approx(60)
    assert Reliability().error == 0


@given(st.integers(0, 10**6))
def test_answers_as_sure_as_they_are_right_have_a_small_error(seed: int) -> None:
    rng, reliability, wrong = np.random.default_rng(seed), Reliability(), Reliability()
    for probability in rng.random(4000):
        right = bool(rng.random() < probability)
        reliability.add(float(probability), right)
        wrong.add(1 - float(probability), right)
    assert reliability.error < 100 * 4 * (BINS / 4000) ** 0.5 / 2  # the noise of so few an interval
    assert wrong.error > 35


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0, 1 / BINS, 0.5]), st.booleans()), min_size=1))
def test_certainties_and_edges_have_an_interval(entries: list[tuple[float, bool]]) -> None:
    reliability = Reliability()
    for probability, right in entries:
        reliability.add(probability, right)
    assert 0 <= reliability.error <= 100


_LAST = (Linear("0", 8, 6), Activate(), Linear("1", 6, tiny.CLASSES))
#: Heads of other training scripts: what stands behind the last dense layer, or in its place.
CHAINS: dict[str, tuple[Layer, ...]] = {
    "no bias": (Pool(), Linear("4", 8, tiny.CLASSES, bias=False)),
    "a convolution, then pooling": (Convolution("0", 8, tiny.CLASSES, 1), Pool("max")),
    "a norm": (Pool(), *_LAST, Norm("7", tiny.CLASSES)),
    "relu": (Pool(), *_LAST, Activate("relu")),
    "leaky relu": (Pool(), *_LAST, Activate("leaky_relu", 0.2)),
    "elu": (Pool(), *_LAST, Activate("elu", 1.0)),
    "tanh": (Pool(), *_LAST, Activate("tanh")),
    "softmax": (Pool(), *_LAST, Activate("softmax")),
}


def network(kind: str) -> Checkpoint:
    """The tiny DenseNet, or a VGG with this head, of which the last layer alone may be scaled."""
    if kind == "densenet":
        return tiny.checkpoint()
    named = kind in get_args(Head)
    configuration = VGGConfig(
        ((4,), (8,), (8,)),
        hidden=8,
        num_classes=tiny.CLASSES,
        head=cast(Head, kind) if named else "adaptive",
        hidden_dense=6 if kind == "legacy-flatten" else None,
        image_size=(64, 64) if "flatten" in kind else None,
        layers=() if named else CHAINS[kind],
    )
    return tiny.of(configuration, 64)


@pytest.mark.parametrize("temperature", [0.4, 1.7])
@pytest.mark.parametrize("kind", ["densenet", *get_args(Head), *CHAINS])
def test_a_folded_checkpoint_gives_the_divided_logits(kind: str, temperature: float) -> None:
    checkpoint = network(kind)
    pixels = torch.randint(0, 256, (3, *checkpoint.preprocessing.shape), dtype=torch.uint8)
    with torch.inference_mode():
        before = loader.load(checkpoint)(pixels)
        after = loader.load(folded(checkpoint, temperature))(pixels)
    torch.testing.assert_close(after, before / temperature, rtol=1e-4, atol=1e-5)
    assert before.std() > 0


def test_number_formats_stay() -> None:
    checkpoint = tiny.checkpoint()
    half = {
        key: value.half() if value.is_floating_point() else value
        for key, value in checkpoint.state_dict.items()
    }
    scaled = folded(replace(checkpoint, state_dict=half), 0.5).state_dict
    assert {key: value.dtype for key, value in scaled.items()} == {
        key: value.dtype for key, value in half.items()
    }
    changed = {key for key in half if not torch.equal(half[key], scaled[key])}
    assert changed <= {"classifier.weight", "classifier.bias"}
    assert "classifier.weight" in changed


@pytest.mark.parametrize("change", [{"activation": "sigmoid"}, {"activation": "none"}, {"classes": None}])
def test_what_is_no_softmax_has_no_temperature(change: dict[str, None]) -> None:
    with pytest.raises(ConfigurationError, match=r"softmax|classes"):
        folded(replace(tiny.checkpoint(), **change), 0.5)  # type: ignore[arg-type]
