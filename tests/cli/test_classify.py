"""`imagenet-serve classify`: files, folders and standard input; a table, JSON, CSV; exit codes."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from service.classifier import Classification
from service.cli.classify import run as classify
from service.cli.classify.resume import Resumed
from service.cli.main import cli
from service.errors import ConfigurationError
from service.host.interpreter import module_command, module_environment
from tests.cli.evaluate.photos import local, picture, predicted, weights
from tests.server import program


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


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_list_of_json_is_whole_and_lines_are_one_each(folder: Path, model: Path) -> None:
    entries = json.loads(run(folder, "--weights", model, "--format", "json").stdout)
    lines = run(folder, "--weights", model, "--format", "jsonl").stdout.splitlines()
    assert [json.loads(line) for line in lines] == entries


@given(cut=st.integers(0, 5000), names=st.lists(st.text('a\n",é', min_size=1, max_size=4), unique=True))
@settings(max_examples=100, deadline=None)
def test_a_file_that_was_cut_anywhere_goes_on_to_the_same(cut: int, names: list[str]) -> None:
    """Whatever was written of it: every image is in it once, with all of its lines."""
    results = [
        Classification(error="no picture")
        if index % 3 == 2
        else Classification(tuple(prediction(rank) for rank in range(3)))
        for index in range(len(names))
    ]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "out.csv"

        def go_on() -> None:
            resumed = Resumed(path, 3)
            with resumed.sink() as sink:
                for name, seen in zip(names, results, strict=True):
                    if name not in resumed.done:
                        sink.write(name, seen)

        go_on()
        whole = path.read_bytes()
        path.write_bytes(whole[:cut])
        go_on()
        assert path.read_bytes() == whole


def prediction(rank: int) -> dict[str, Any]:
    return {"class_id": rank, "wnid": None, "label": f'a "{rank}", b', "probability": 0.5}


def test_a_run_goes_on_where_it_was_ended(folder: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    first = run(folder / "0", "--weights", model, "--resume", out)
    assert first.exit_code == 0, first.stderr
    assert first.stdout == ""
    before = out.read_text()
    second = run(folder, "--weights", model, "--resume", out)
    assert "holds 5 images already" in second.stderr
    assert out.read_text().startswith(before)
    assert [row["file"] for row in read(out)][::5] == sorted(map(str, folder.rglob("*.png")))
    third = run(folder, "--weights", "hf://no/such", "--resume", out)
    assert third.exit_code == 0, "nothing is left, so no model is needed"


def test_another_file_is_not_written_into(folder: Path, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "letters.csv"
    other.write_text("dear,friend\n")
    result = run(folder, "--weights", model, "--resume", other)
    assert isinstance(result.exception, ConfigurationError)
    assert other.read_text() == "dear,friend\n"


class _Interrupted:
    """A model that is interrupted after two images."""

    def __init__(self, settings: Any, tell: Any) -> None:
        tell("loading")

    def classify(self, images: Iterable[Any]) -> Iterator[Classification]:
        for _ in list(images)[:2]:
            yield Classification((prediction(1),))
        raise KeyboardInterrupt


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "table"])
def test_ctrl_c_keeps_what_was_done(folder: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(classify, "LocalClassifier", _Interrupted)
    result = run(folder, "--format", form)
    assert result.exit_code == 130
    assert "after 2 of 11" in result.stderr
    assert result.stdout.count("00.png") == result.stdout.count("01.png") == 1
    if form == "json":
        assert len(json.loads(result.stdout)) == 2


def test_a_pipe_that_breaks_ends_it_without_a_traceback(folder: Path, model: Path) -> None:
    command = module_command("service", "classify", str(folder), f"--weights={model}", "--format=csv")
    with program(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=module_environment()
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read().decode()
        assert process.wait() == 141
    assert "Traceback" not in said
    assert "BrokenPipe" not in said


def test_an_empty_folder_is_said_before_the_model_is_loaded(tmp_path: Path) -> None:
    result = run(tmp_path, "--weights", "hf://no/such")
    assert isinstance(result.exception, ConfigurationError)
    assert "there are no images" in str(result.exception)


def test_wrong_usage_is_two(tmp_path: Path) -> None:
    assert run().exit_code == 2
    assert run("-", "-").exit_code == 2
    assert run(tmp_path, "--model", "resnet50").exit_code == 2


def test_a_model_that_cannot_be_had_prints_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "no.pth").write_bytes(b"this is no checkpoint")
    result = run(folder, "--weights", tmp_path / "no.pth", "--format", "json")
    assert result.exit_code != 0
    assert result.stdout == ""
