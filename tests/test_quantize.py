"""What an int8 artifact is judged by, and that a model which agrees too little is not written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from service import quantize
from service.cli import cli
from service.models.runtimes import artifact
from service.settings import load as settings
from tests import tiny
from tests.uploads import png


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
    monkeypatch.setattr(quantize, "_nncf", lambda: None)
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


@pytest.mark.parametrize(("damage", "force", "code"), [(0.0, False, 0), (9.0, False, 1), (9.0, True, 0)])
def test_an_artifact_is_written_unless_it_disagrees(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, damage: float, force: bool, code: int
) -> None:
    """NNCF is heavy and an extra: here the "quantised" model is the original, or one with other answers."""
    monkeypatch.setattr(quantize, "_nncf", lambda: None)
    monkeypatch.setattr(quantize, "quantised", lambda model, images: model)
    monkeypatch.setattr(
        "service.models.runtimes.artifact.libraries", lambda *names: dict.fromkeys(names, "0")
    )
    answers = quantize._logits

    def logits(model: object, images: list[quantize.Images]) -> quantize.Logits:
        seen.append(len(images))
        noise = np.random.default_rng(0).normal(0, damage * (len(seen) == 2), (len(images), tiny.CLASSES))
        return answers(model, images) + noise.astype(np.float32)

    seen: list[int] = []
    monkeypatch.setattr(quantize, "_logits", logits)
    out = tmp_path / "int8"
    chosen = settings(weights=str(tiny.directory(tmp_path)))
    assert quantize.run(chosen, photos, out, force=force) == code
    assert out.exists() == (code == 0)
    if out.exists():
        about = json.loads((out / "about.json").read_text())
        assert about["check"]["images"] == seen[0] == 23
        assert about["calibration"]["images"] == 17
        assert (about["check"]["top1_agreement"] == 1.0) == (damage == 0)
        assert artifact.read(out).precision == "int8"


@pytest.mark.slow
def test_nncf_makes_a_model_of_integers(tmp_path: Path, photos: Path) -> None:
    pytest.importorskip("nncf")
    out = tmp_path / "int8"
    assert quantize.run(settings(weights=str(tiny.directory(tmp_path))), photos, out, force=True) == 0
    kinds = {operation.get_type_name() for operation in artifact.read(out).model.get_ops()}
    assert "FakeQuantize" in kinds
