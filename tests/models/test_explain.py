"""What a position says for a class, against plain autograd through the whole network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from service.models import loader, serving
from service.models.catalog import VARIANTS
from service.models.checkpoints import Checkpoint, resolve, write
from service.models.configuration import DenseNetConfig, VGGConfig
from service.models.densenet import DenseNet
from service.models.explain import Explainer
from service.models.head import Activate, Adapt, Flatten, Linear, Norm, Pool
from service.models.loader import Uint8Model
from service.models.runner import ModelRunner
from service.models.runtimes.eager import Eager
from service.settings import load as settings
from service.task import Explain, Task
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


def by_autograd(model: Uint8Model, image: np.ndarray, index: int) -> torch.Tensor:  # type: ignore[type-arg]
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
    explainer = Explainer(model.network)
    if runtime == "openvino":
        openvino = pytest.importorskip("service.models.runtimes.openvino")
        way = openvino.load(model, checkpoint, "fp32", 2, lambda detail: None)
    else:
        way = Eager(model, "fp32")
    runner = ModelRunner(way, checkpoint.preprocessing.shape, 5, explainer)
    wanted = [Explain(), Task.CLASSIFY, Explain(classes - 1), Task.FEATURES_MAP, Explain(0)]
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
    for index in (0, logits.shape[1] - 1):
        maps = Explainer(model.network).maps(features, [index] * 3)
        bias = model.network.classifier.bias[index]  # type: ignore[index]
        torch.testing.assert_close(maps.mean((1, 2)) + bias, logits[:, index], rtol=1e-4, atol=1e-4)


def test_an_image_has_the_same_map_alone_and_in_company() -> None:
    model = loader.load(CHECKPOINTS["vgg_bn"]())
    explainer = Explainer(model.network)
    features = model.forward_features(torch.from_numpy(images(CHECKPOINTS["vgg_bn"](), 4)))
    together = explainer.maps(features, [3, 1, 4, 1])
    for row, index in enumerate([3, 1, 4, 1]):
        alone = explainer.maps(features[row : row + 1], [index])[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-5)


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


def test_large_weights_are_borrowed_where_they_are_the_same() -> None:
    checkpoint = tiny.of(VGGConfig(((8,), (16, 16)), hidden=512, num_classes=10), 32)
    model = loader.load(checkpoint)
    explainer = Explainer(model.network)
    first = model.network.classifier[0].weight  # type: ignore[index, union-attr]
    same, other = first.detach().clone().numpy().reshape(-1), np.zeros(first.numel(), np.float32)
    same.flags.writeable = False
    features = model.forward_features(torch.from_numpy(images(checkpoint, 2)))
    before = explainer.maps(features, [1, 2])
    explainer.borrow([other, np.zeros(5, np.float32), same])
    borrowed = [np.shares_memory(parameter.numpy(), same) for parameter in explainer.head.parameters()]
    assert borrowed == [True] + [False] * 5
    assert torch.equal(explainer.maps(features, [1, 2]), before)


def test_a_loaded_vgg_has_its_head_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With OpenVINO: the numbers of the converted model's own file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    write(tiny.of(VGGConfig(((8,), (16, 16)), hidden=512, num_classes=10), 32), tmp_path / "vgg")
    runner = serving.load(settings(weights=str(tmp_path / "vgg"), device="cpu"), lambda *_: None).runner
    assert runner._deliver.explainer is not None
    large = max(runner._deliver.explainer.head.parameters(), key=lambda parameter: parameter.numel()).numpy()
    assert any(np.shares_memory(large, array) for array in runner.runtime.constants())  # type: ignore[attr-defined]
