"""What a position says for a class, against plain autograd through the whole network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from service.models import loader, serving
from service.models.building import describe
from service.models.catalog import VARIANTS
from service.models.checkpoints import Checkpoint, resolve
from service.models.configuration import DenseNetConfig, VGGConfig
from service.models.densenet import DenseNet
from service.models.explain import Explainer
from service.models.gradients import Head
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
from service.models.heads import LayeredHead
from service.models.loader import Uint8Model
from service.models.runner import ModelRunner
from service.models.runtimes import converting
from service.models.runtimes.eager import Eager
from service.settings import load as settings
from service.shared.outputs import Explain, OutputKind
from tests import tiny

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


def fixture(name: str, model: str = "vgg16") -> Checkpoint:
    return resolve(str(FIXTURES / name), model)


CHECKPOINTS = {
    "densenet": tiny.checkpoint,
    "demo": lambda: resolve("demo", "densenet121"),
    "keras densenet": lambda: fixture("khub_densenet_g8", "densenet121"),
    "keras densenet, max": lambda: tiny.of(
        DenseNetConfig((2, 2), growth_rate=8, stem_width=8, num_classes=10, head_pooling="max"), 64
    ),
    "timm densenet": lambda: fixture("timm_densenetblur", "densenet121"),
    "vgg": lambda: tiny.of(VGGConfig(((8,), (8, 8)), hidden=16, num_classes=10), 32),
    "vgg_bn": lambda: tiny.of(VGGConfig(((8,), (8, 8)), batch_norm=True, hidden=16, num_classes=10), 40),
    "timm vgg": lambda: fixture("timm_vgg"),
    "keras vgg, avg": lambda: fixture("khub_vgg_avg"),
    "keras vgg, max": lambda: tiny.of(
        VGGConfig(((8,), (8, 8)), hidden=16, num_classes=10, head="valid", head_pooling="max"), 48
    ),
    "keras vgg, flatten": lambda: fixture("khub_vgg_flatten_softmax"),
    "keras vgg, legacy": lambda: tiny.of(
        VGGConfig(((8,), (8, 8)), hidden=16, num_classes=10, head="legacy", head_activation="sigmoid"), 32
    ),
    "densenet, own head": lambda: tiny.of(
        DenseNetConfig(
            (2, 2),
            growth_rate=8,
            stem_width=8,
            num_classes=10,
            layers=(
                Pool("catavgmax"),
                Norm("0", 56),
                Linear("2", 56, 12),
                Activate("elu", 1.0),
                Linear("5", 12, 10),
            ),
        ),
        64,
    ),
    "vgg, own head": lambda: tiny.of(
        VGGConfig(
            ((8,), (8, 8)),
            num_classes=10,
            layers=(
                Adapt((2, 3)),
                Flatten(),
                Linear("1", 48, 9),
                Activate("tanh"),
                Linear("4", 9, 10, bias=False),
            ),
        ),
        40,
    ),
    "keras vgg, legacy-flatten": lambda: tiny.of(
        VGGConfig(((8,), (8, 8)), hidden=16, num_classes=10, head="legacy-flatten", image_size=(32, 32)), 32
    ),
}


def images(checkpoint: Checkpoint, count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(2).integers(0, 256, (count, *checkpoint.preprocessing.shape), np.uint8)


def explainer_of(checkpoint: Checkpoint) -> Explainer:
    head = loader.head_of(loader.load(checkpoint), checkpoint)
    assert head is not None
    return Explainer(head)


def by_autograd(model: Uint8Model, image: np.ndarray, index: int) -> torch.Tensor:
    """Grad-CAM of one image as its paper has it, times the number of positions, without its ReLU."""
    picture = model.normalise(torch.from_numpy(image[None])).requires_grad_()
    features = model.network.forward_features(picture)
    features.retain_grad()
    model.network.forward_head(features)[0, index].backward()
    assert features.grad is not None
    positions = features.shape[2] * features.shape[3]
    weights = features.grad.mean((2, 3), keepdim=True)
    return positions * (weights * features).sum(1)[0].detach()


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("runtime", ["eager", "openvino"])
def test_maps_are_those_of_plain_autograd(name: str, runtime: str) -> None:
    """Mixed with other work in one batch, for given classes and for the top one."""
    checkpoint = CHECKPOINTS[name]()
    model, reference = loader.load(checkpoint), loader.load(checkpoint)
    pixels, classes = images(checkpoint, 5), len(checkpoint.classes or ())
    image = checkpoint.preprocessing.shape
    if runtime == "openvino":
        openvino = pytest.importorskip("service.models.runtimes.openvino")
        converted = converting.load(
            model, checkpoint, describe(checkpoint, model), "fp32", lambda detail: None
        )
        way, head = openvino.runtime(converted, "fp32", 2, image), converted.head
    else:
        head = loader.head_of(loader.load(checkpoint), checkpoint)
        way = Eager(model, "fp32")
    assert head is not None
    runner = ModelRunner(way, image, 5, Explainer(head))
    wanted: list[OutputKind | Explain] = [
        Explain(),
        OutputKind.CLASSIFY,
        Explain(classes - 1),
        OutputKind.FEATURES_MAP,
        Explain(0),
    ]
    results = np.full((5, runner.results), 777, np.float32)
    runner.run(pixels, [4, 0, 3, 1, 2], wanted, results)
    _, height, width = runner.feature_shape
    for slot, want in zip([4, 0, 3, 1, 2], wanted, strict=True):
        logits = reference(torch.from_numpy(pixels[slot : slot + 1]))[0]
        if not isinstance(want, Explain):
            continue
        length = classes + height * width
        np.testing.assert_allclose(results[slot, :classes], logits, rtol=1e-4, atol=1e-4)
        assert (results[slot, length:] == 777).all()
        index = int(logits.argmax()) if want.class_index is None else want.class_index
        expected = by_autograd(reference, pixels[slot], index).numpy()
        got = results[slot, classes:length].reshape(height, width)
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["densenet", "demo", "keras densenet"])
def test_the_exact_map_adds_up_to_the_logit(name: str) -> None:
    model = loader.load(CHECKPOINTS[name]())
    assert isinstance(model.network, DenseNet)
    features = model.forward_features(torch.from_numpy(images(CHECKPOINTS[name](), 3)))
    logits = model.forward_head(features)
    explainer = explainer_of(CHECKPOINTS[name]())
    for index in (0, logits.shape[1] - 1):
        maps = explainer.maps(features.numpy(), [index] * 3)
        bias = model.network.classifier.bias[index].item()  # type: ignore[index]
        np.testing.assert_allclose(maps.mean((1, 2)) + bias, logits[:, index], rtol=1e-4, atol=1e-4)


def test_an_image_has_the_same_map_alone_and_in_company() -> None:
    model = loader.load(CHECKPOINTS["vgg_bn"]())
    explainer = explainer_of(CHECKPOINTS["vgg_bn"]())
    features = model.forward_features(torch.from_numpy(images(CHECKPOINTS["vgg_bn"](), 4))).numpy()
    together = explainer.maps(features, [3, 1, 4, 1])
    for row, index in enumerate([3, 1, 4, 1]):
        alone = explainer.maps(features[row : row + 1], [index])[0]
        np.testing.assert_allclose(together[row], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_explains(name: str) -> None:
    """Through the runtime that is the default here, against autograd through torchvision's own layers."""
    given = settings(model=name, weights="random:1", device="cpu")
    runner = serving.load(given, lambda *_: None).runner
    reference = loader.load(resolve("random:1", name))
    pixels = np.random.default_rng(3).integers(0, 256, (2, 224, 224, 3), np.uint8)
    results = np.zeros((2, runner.results), np.float32)
    runner.run(pixels, [0, 1], [Explain(7), Explain(7)], results)
    for row in range(2):
        expected = by_autograd(reference, pixels[row], 7).numpy()
        got = results[row, 1000:1049].reshape(7, 7)
        np.testing.assert_allclose(got, expected, rtol=1e-2, atol=1e-3 * np.abs(expected).max())


def test_a_converted_vgg_has_its_head_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its large arrays are those of OpenVINO's own file."""
    pytest.importorskip("openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    checkpoint = tiny.of(VGGConfig(((8,), (16, 16)), hidden=512, num_classes=10), 32)
    model = loader.load(checkpoint)
    converted = converting.load(model, checkpoint, describe(checkpoint, model), "fp32", lambda detail: None)
    assert converted.directory is not None
    assert converted.head is not None
    about = json.loads((converted.directory / "about.json").read_text())
    places = about["head"]["arrays"]
    assert places["classifier.0.weight"]["file"] == "model.bin"
    assert (converted.directory / "head.bin").stat().st_size < 100_000
    for name, array in converted.head.arrays.items():
        np.testing.assert_array_equal(array, model.network.state_dict()[name])


@examples(max_examples=30)
@given(
    st.lists(st.sampled_from(sorted(get_args(Nonlinearity))), min_size=1, max_size=3),
    st.sampled_from(get_args(Pooling)),
    st.integers(0, 2**32 - 1),
)
def test_the_gradient_of_any_chain_is_that_of_autograd(bends: list[str], pool: str, seed: int) -> None:
    """Of every nonlinearity and pooling, behind convolution, norm and dense layer, in any order."""
    chance = np.random.default_rng(seed)
    width = 6 * (2 if pool.startswith("cat") else 1)
    layers: list[Layer] = [Adapt((4, 5)), Convolution("a", 3 * 9, 6, 3, 1), Activate(bends[0], 0.3)]  # type: ignore[arg-type]
    layers += [Pool(pool), Norm("b", width, 1e-3)]  # type: ignore[arg-type]
    for number, bend in enumerate(bends[1:]):
        layers += [Linear(f"l{number}", width, width, bias=number == 0), Activate(bend, 0.7)]  # type: ignore[arg-type]
    layers.append(Linear("end", width, 4))
    module = LayeredHead(layers)
    arrays = {}
    for name, value in module.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            drawn = chance.normal(0, 1, value.shape).astype(np.float32)
            arrays[f"classifier.{name}"] = np.abs(drawn) + 0.5 if name.endswith("running_var") else drawn
    module.load_state_dict(
        {name.removeprefix("classifier."): torch.from_numpy(array) for name, array in arrays.items()},
        strict=False,
    )
    module.eval()
    features = chance.normal(0, 2, (2, 3, 6, 7)).astype(np.float32)
    head = Head(layers, arrays)
    leaf = torch.from_numpy(features).requires_grad_()
    logits = module(leaf)
    np.testing.assert_allclose(head.logits(features), logits.detach(), rtol=1e-3, atol=1e-4)
    (expected,) = torch.autograd.grad(logits[[0, 1], [2, 0]].sum(), leaf)
    got = head.gradients(features, [2, 0])
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-2, atol=1e-4 + 1e-3 * expected.abs().max().item())
