"""`imagenet-serve convert`: another origin's checkpoint becomes ours, and answers the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from service.cli.main import cli
from service.errors import CheckpointError
from service.models import loader
from service.models.checkpoints import resolve
from tests import tiny

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.mark.parametrize(
    "name", ["khub_vgg_avg", "khub_densenet_g8", "timm_vgg", "tv_densenet_old_keys/model.pth"]
)
def test_what_was_converted_answers_the_same(name: str, tmp_path: Path) -> None:
    source = str(FIXTURES / name)
    result = CliRunner().invoke(cli, ["convert", source, str(tmp_path / "ours")])
    assert result.exit_code == 0, result.output
    before, after = resolve(source, "densenet121"), resolve(str(tmp_path / "ours"), "densenet121")
    assert after.configuration == before.configuration
    assert after.preprocessing == before.preprocessing
    assert after.classes == before.classes
    assert (after.activation, after.name) == (before.activation, before.name)
    pixels = torch.randint(0, 256, (2, *before.preprocessing.shape), dtype=torch.uint8)
    assert torch.equal(loader.load(before)(pixels), loader.load(after)(pixels))


def test_a_source_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["convert", "/no/such/weights", str(tmp_path / "ours")])
    assert isinstance(result.exception, CheckpointError)
    assert not (tmp_path / "ours").exists()


def test_what_is_there_is_not_overwritten_unasked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("mine")
    for command in (["convert", "random", str(out)], ["export", str(out)]):
        done = CliRunner().invoke(cli, command)
        assert done.exit_code == 2
        assert "--overwrite" in done.stderr
    assert [path.name for path in out.iterdir()] == ["precious"]
    source = str(tiny.directory(tmp_path))
    done = CliRunner().invoke(cli, ["convert", source, str(out), "--overwrite"])
    assert done.exit_code == 0, done.output
    assert (out / "model.safetensors").exists()


def test_a_folder_with_files_is_overwritten_on_request_only(tmp_path: Path) -> None:
    source = str(FIXTURES / "timm_vgg")
    (tmp_path / "mine.txt").write_text("mine")
    assert CliRunner().invoke(cli, ["convert", source, str(tmp_path)]).exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    umask = os.umask(0o027)
    try:
        assert CliRunner().invoke(cli, ["convert", source, str(tmp_path), "--overwrite"]).exit_code == 0
    finally:
        os.umask(umask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"] == 0o640
