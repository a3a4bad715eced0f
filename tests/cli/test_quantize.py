"""What an int8 artifact is judged by, and that a model which agrees too little is not written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from service.cli.main import cli
from service.cli.quantize import run as quantize
from service.models import loader
from service.models.configuration import Configuration, DenseNetConfig, VGGConfig
from service.models.network import build
from service.models.runtimes import artifact, conversion, int8
from service.settings import load as settings
from tests import tiny
from tests.uploads import png

Damaged = Callable[[Iterable[float]], list[str]]

_DENSENET = DenseNetConfig((2, 2), growth_rate=8, stem_width=8, num_classes=10)
_VGG = VGGConfig(((8,), (8, 8)), batch_norm=True, hidden=16, num_classes=10)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.png").write_bytes(png(number))
    return folder


def test_equal_answers_agree_and_a_swapped_one_counts() -> None:
    before = np.eye(10, dtype=np.float32) * 5
    same = quantize.compare(before, before)
    assert (same.images, same.top1_agreement, same.largest_probability_change) == (10, 1.0, 0.0)
    after = before.copy()
    after[0] = before[1]
    worse = quantize.compare(before, after)
    assert worse.top1_agreement == 0.9
    best, other = np.exp(5) / (np.exp(5) + 9), 1 / (np.exp(5) + 9)
    assert worse.largest_probability_change == pytest.approx(best - other)
    assert worse.mean_probability_change == pytest.approx((best - other) / 10)


def test_too_few_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "tools", lambda: None)
    (tmp_path / "empty").mkdir()
    weights = str(tiny.directory(tmp_path))
    arguments = [
        "quantize",
        "--weights",
        weights,
        "--calibrate",
        str(tmp_path / "empty"),
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 1
    assert "has 0 usable images" in str(result.exception)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def damaged(monkeypatch: pytest.MonkeyPatch) -> Damaged:
    """NNCF is heavy and an extra: here each recipe gives the original back, with answers that are this far off.

    What is returned names the recipes that were tried.
    """

    def install(damages: Iterable[float]) -> list[str]:
        tried: list[str] = []
        noise, answers = iter(damages), quantize.logits

        def quantised(model: object, images: object, recipe: int8.QuantizationRecipe) -> tuple[object, float]:
            tried.append(recipe.fp32)
            return model, next(noise)

        def logits(model: object, images: Sequence[quantize.Images]) -> quantize.Logits:
            model, damage = model if isinstance(model, tuple) else (model, 0.0)
            found = answers(model, images)
            return found + np.random.default_rng(0).normal(0, damage, found.shape).astype(np.float32)

        def write(directory: Path, model: tuple[object, float], *rest: Any, **more: Any) -> None:
            written(directory, model[0], *rest, **more)

        written = artifact.write
        monkeypatch.setattr(int8, "tools", lambda: None)
        monkeypatch.setattr(int8, "quantised", quantised)
        monkeypatch.setattr(quantize, "logits", logits)
        monkeypatch.setattr(artifact, "write", write)
        return tried

    return install


@pytest.mark.parametrize(("damage", "force", "code"), [(0.0, False, 0), (9.0, False, 1), (9.0, True, 0)])
def test_an_artifact_is_written_unless_it_disagrees(
    tmp_path: Path, photos: Path, damaged: Damaged, damage: float, force: bool, code: int
) -> None:
    damaged([damage] * 3)
    out = tmp_path / "int8"
    chosen = settings(weights=str(tiny.directory(tmp_path)))
    assert quantize.run(chosen, photos, out, force=force) == code
    assert out.exists() == (code == 0)
    if out.exists():
        about = json.loads((out / "about.json").read_text())
        assert about["calibration"]["images"] == 9
        assert about["check"]["images"] == 31
        assert (about["check"]["top1_agreement"] == 1.0) == (damage == 0)
        assert artifact.read(out).precision == "int8"


@pytest.mark.parametrize(("damages", "tries"), [([0], 1), ([9, 0], 2), ([9, 9, 0], 3), ([9, 9, 9], 3)])
def test_the_fastest_recipe_that_keeps_the_classes_is_taken(
    tmp_path: Path, photos: Path, damaged: Damaged, damages: list[float], tries: int
) -> None:
    tried = damaged(damages)
    out = tmp_path / "int8"
    assert quantize.run(settings(weights=str(tiny.directory(tmp_path))), photos, out, force=True) == 0
    assert len(tried) == tries
    assert json.loads((out / "about.json").read_text())["fp32"] == tried[-1]


@pytest.mark.parametrize(("configuration", "transitions"), [(_DENSENET, 1), (_VGG, 0)])
def test_each_recipe_keeps_more_than_the_one_before(configuration: Configuration, transitions: int) -> None:
    torch.manual_seed(0)
    model = loader.Uint8Model(build(configuration).eval().requires_grad_(False), 3, (0.5,) * 3, (0.5,) * 3)
    folded = int8.prepared(conversion.convert(model, (32, 32, 3)))
    assert "BatchNormInference" not in {operation.get_type_name() for operation in folded.get_ops()}
    everything, *others = int8.recipes(folded)
    assert (everything.layers, everything.kinds) == ((), ())
    kinds = {operation.get_friendly_name(): operation.get_type_name() for operation in folded.get_ops()}
    ends, *rest = ([kinds[name] for name in recipe.layers] for recipe in others)
    assert ends == ["Convolution", "MatMul"]
    assert rest == ([[*ends, *["Convolution"] * transitions]] if transitions else [])


@pytest.mark.slow
def test_nncf_makes_a_model_of_integers(tmp_path: Path, photos: Path) -> None:
    pytest.importorskip("nncf")
    out = tmp_path / "int8"
    assert quantize.run(settings(weights=str(tiny.directory(tmp_path))), photos, out, force=True) == 0
    kinds = {
        operation.get_type_name()
        for operation in artifact.read(out).open().graphs[artifact.DIRECT].model().get_ops()
    }
    assert "FakeQuantize" in kinds
