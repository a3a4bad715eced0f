"""`imagenet-serve classify`: files, folders and standard input; a table, JSON, CSV; exit codes."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from service.cli import cli
from service.errors import ConfigurationError
from tests.evaluate.photos import local, picture, predicted, weights


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in range(11):
        path = tmp_path / "pictures" / str(seed // 5) / f"{seed:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(seed))
    (tmp_path / "pictures" / "notes.txt").touch()
    return tmp_path / "pictures"


def run(*arguments: object, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(cli, ["classify", *map(str, arguments)], input=stdin)


def test_a_folder_and_standard_input(folder: Path, model: Path) -> None:
    result = run(folder, "-", "--weights", model, "--format", "json", "--top-k", 3, stdin=picture(11))
    assert result.exit_code == 0, result.stderr
    entries = json.loads(result.stdout)
    assert [Path(entry["file"]).name for entry in entries] == [
        *(f"{seed:02}.png" for seed in range(11)),
        "(stdin)",
    ]
    wanted = [named[:3] for named in predicted(local(model), range(12))]
    assert [[one["class_id"] for one in entry["predictions"]] for entry in entries] == wanted


def test_csv_and_table(folder: Path, model: Path) -> None:
    photo = folder / "0" / "00.png"
    rows = list(csv.DictReader(io.StringIO(run(photo, "--weights", model, "--format", "csv").stdout)))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert sum(float(row["probability"]) for row in rows) <= 1
    table = run(photo, "--weights", model).stdout
    assert table.count("00.png") == 1
    assert rows[0]["label"] in table


def test_what_is_no_image_is_named_and_the_rest_is_done(folder: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "[red].png").write_text("no picture")
    arguments = (tmp_path / "[red].png", tmp_path / "missing.jpg", folder / "0", "--weights", model)
    result = run(*arguments, "--format", "json")
    assert result.exit_code == 1
    errors = {
        Path(entry["file"]).name: entry["error"] for entry in json.loads(result.stdout) if "error" in entry
    }
    assert set(errors) == {"[red].png", "missing.jpg"}
    assert f"{tmp_path}/missing.jpg: no such file" in result.stderr
    assert "[red].png" in run(*arguments).stdout


def test_an_empty_folder_is_said_before_the_model_is_loaded(tmp_path: Path) -> None:
    result = run(tmp_path, "--weights", "/no/such/file.pth")
    assert isinstance(result.exception, ConfigurationError)
    assert "there are no images" in str(result.exception)


def test_wrong_usage_is_two(tmp_path: Path) -> None:
    assert run().exit_code == 2
    assert run("-", "-").exit_code == 2
    assert run(tmp_path, "--model", "resnet50").exit_code == 2
