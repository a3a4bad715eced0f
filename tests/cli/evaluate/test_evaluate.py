"""The command from outside: in process and through a running server, the same to the image."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from service.classifier import Identity
from service.cli.evaluate import report
from service.cli.evaluate.score import Score
from service.cli.evaluate.temperature import folded
from service.cli.main import cli
from service.errors import ConfigurationError
from service.labels import imagenet_classes
from service.models.checkpoints import resolve, write
from tests.cli.evaluate.photos import CLASS_IDS, local, picture, predicted, weights
from tests.server import Server

SEEDS = range(24)
#: So small that a model in this process need not be measured first.
HERE = ("--max-batch-size", 4, "--weights")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    with Server(weights=model, frontends=1, queue_capacity=6, max_batch_size=4) as running:
        yield running


@pytest.fixture(scope="module")
def answers(model: Path) -> list[list[int]]:
    return predicted(local(model), SEEDS)


@pytest.fixture
def folder(tmp_path: Path, answers: list[list[int]]) -> Path:
    """A third of the pictures lie in the class that the model names first, a third in its third, the rest in none."""
    for seed, named in zip(SEEDS, answers, strict=True):
        truth = (named[0], named[2], _never_named(named))[seed % 3]
        path = tmp_path / str(imagenet_classes()[truth].wnid) / f"{seed}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture(seed))
    return tmp_path


def _never_named(named: list[int]) -> int:
    return next(class_id for class_id in CLASS_IDS if class_id not in named)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["evaluate", *map(str, arguments)])


def figures(*arguments: object, code: int = 0) -> dict[str, Any]:
    result = run(*arguments, "--format", "json")
    assert result.exit_code == code, result.output
    (document,) = json.loads(result.stdout)
    return dict(document)


def test_the_model_tells_the_pictures_apart(answers: list[list[int]]) -> None:
    assert len({named[0] for named in answers}) > 4


def test_in_process(folder: Path, model: Path) -> None:
    found = figures(folder, *HERE, model)
    assert (found["images"], found["errors"], found["left_out_classes"]) == (24, [], 0)
    assert found["top1"] == pytest.approx(100 / 3, abs=0.001)
    assert found["top5"] == pytest.approx(200 / 3, abs=0.001)
    assert found["top1_error"] == pytest.approx(200 / 3, abs=0.001)
    assert len(found["confusions"]) == 10


def test_through_a_server_the_same_to_the_image(folder: Path, model: Path, server: Server) -> None:
    # More at once than the server has places for: it refuses some, and they come again.
    over_http = figures(folder, "--url", server.url, "--concurrency", 8, "--confusions", 99)
    in_process = figures(folder, *HERE, model, "--confusions", 99)
    del over_http["seconds"], in_process["seconds"]
    assert over_http == in_process


def test_what_the_model_does_not_know_is_left_out_and_said(folder: Path, model: Path) -> None:
    for name in ("n01440764", "somewhere"):
        (folder / name).mkdir()
        (folder / name / "1.png").write_bytes(picture(1))
    result = run(folder, *HERE, model)
    assert result.exit_code == 0
    assert "left out: 2 of " in result.stderr
    assert "(2 images)" in result.stderr
    assert " 24 " in result.stdout


def test_a_broken_image_is_named_and_not_counted(folder: Path, model: Path, server: Server) -> None:
    (folder / "n02123045").mkdir(exist_ok=True)
    broken = folder / "n02123045" / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 no more")
    found = figures(folder, "--url", server.url, code=1)
    assert found["images"] == 24
    (error,) = found["errors"]
    assert error["file"] == str(broken)
    assert "damaged" in error["error"]
    result = run(folder, *HERE, model)
    assert result.exit_code == 1
    assert f"{broken}: " in result.stderr
    assert "not counted: 1 images" in result.stderr


def test_the_flat_layout(tmp_path: Path, model: Path, answers: list[list[int]]) -> None:
    lines = []
    for seed, named in zip(SEEDS, answers, strict=True):
        (tmp_path / f"ILSVRC2012_val_{seed:08}.JPEG").write_bytes(picture(seed))
        truth = imagenet_classes()[named[0 if seed < 6 else 1]].wnid
        lines.append(f"ILSVRC2012_val_{seed:08},{truth} 1 2 3 4")
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines]))
    found = figures(tmp_path, *HERE, model)
    assert (found["top1"], found["top5"]) == (25.0, 100.0)


def test_limit_csv_and_table(folder: Path, model: Path) -> None:
    result = run(folder, *HERE, model, "--limit", 7, "--format", "csv")
    (row,) = csv.DictReader(io.StringIO(result.stdout))
    assert row["images"] == "7"
    assert row["published_top1"] == ""  # nobody published anything about this one
    assert "What densenet mistakes most often" in run(folder, *HERE, model, "--limit", 20).stdout


def test_the_published_figures_stand_beside_its_own() -> None:
    identity = Identity("vgg11", "IMAGENET1K_V1", imagenet_classes(), 69.02, 88.628)
    evaluation = report.Evaluation(identity, Score(4, 3, 4), [], report.LeftOut(0, 1, 0), 1.0)
    line = report._figures(evaluation)
    # torch hub's table: vgg11 30.98 and 11.37.
    assert (line["published_top1_error"], line["published_top5_error"]) == (30.98, 11.372)
    assert (line["top1"], line["top5_error"]) == (75.0, 0.0)
    first, second, _ = report._lines(evaluation, published=True)
    assert (first["published error"].strip(), second["published error"].strip()) == ("30.98", "11.37")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--url", "http://127.0.0.1:1"], "no server at"),
        (["--url", "nowhere"], "no server at"),
        (["--weights", "MODEL", "--labels", "LABELS"], "knows none of the classes"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    folder: Path, tmp_path: Path, model: Path, arguments: list[str], sentence: str
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"thing {index}" for index in range(10)))
    files = {"MODEL": model, "LABELS": labels}
    result = run(folder, *(files.get(word, word) for word in arguments))
    assert isinstance(result.exception, ConfigurationError)
    assert sentence in str(result.exception)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--url", "http://x", "--model", "vgg11"],
        ["--url", "http://x", "--all"],
        ["--all", "--weights", "random"],
        ["--calibrate", "out", "--url", "http://x"],
        ["--calibrate", "out", "--all"],
        ["--format", "xml"],
        ["--limit", "0"],
        ["--device", "tpu"],
    ],
)
def test_wrong_usage_is_two(folder: Path, arguments: list[str]) -> None:
    assert run(folder, *arguments).exit_code == 2
    assert run(folder / "nothing").exit_code == 2


def sorted_photos(parent: Path, answers: list[list[int]], places: tuple[int, ...]) -> Path:
    """The pictures in folders of the class that the model names in this place of its answer, in turn."""
    for seed, named in zip(SEEDS, answers, strict=True):
        truth = named[places[seed % len(places)]]
        path = parent / "photos" / str(imagenet_classes()[truth].wnid) / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(seed))
    return parent / "photos"


def test_calibrate_writes_a_checkpoint_that_needs_no_temperature_more(
    tmp_path: Path, model: Path, answers: list[list[int]]
) -> None:
    photos, too_sure, out = sorted_photos(tmp_path, answers, (0, 0, 2)), tmp_path / "sure", tmp_path / "out"
    write(folded(resolve(str(model), "densenet121"), 0.2), too_sure)
    before = figures(photos, *HERE, too_sure, "--calibrate", out)
    assert before["calibration"]["temperature"] > 1
    assert before["calibration"]["images"] == 24
    after = figures(photos, *HERE, out, "--calibrate", tmp_path / "again")
    assert after["calibration"]["temperature"] == pytest.approx(1, abs=0.002)
    for figure in ("top1", "top5", "confusions"):
        assert after[figure] == before[figure]
    assert json.loads((out / "config.json").read_text())["calibration"] == before["calibration"]


def test_figures_are_shown_where_photos_tell_no_temperature(
    tmp_path: Path, model: Path, answers: list[list[int]]
) -> None:
    result = run(sorted_photos(tmp_path, answers, (0,)), *HERE, model, "--calibrate", tmp_path / "out")
    assert result.exit_code == 1
    assert "no checkpoint was written: these 12 photos determine no temperature" in result.stderr
    assert "100.00" in result.stdout
    assert not (tmp_path / "out").exists()


def test_calibrate_writes_over_a_checkpoint_on_request_only(
    tmp_path: Path, model: Path, answers: list[list[int]]
) -> None:
    """Also over the one that it reads."""
    photos, out = sorted_photos(tmp_path, answers, (0, 0, 2)), tmp_path / "out"
    write(folded(resolve(str(model), "densenet121"), 0.2), out)
    before = (out / "model.safetensors").read_bytes()
    refused = run(photos, *HERE, out, "--calibrate", out)
    assert refused.exit_code == 2
    assert "--overwrite" in refused.stderr
    assert (out / "model.safetensors").read_bytes() == before
    assert figures(photos, *HERE, out, "--calibrate", out, "--overwrite")["calibration"]["temperature"] > 1
    after = figures(photos, *HERE, out, "--calibrate", tmp_path / "again")
    assert after["calibration"]["temperature"] == pytest.approx(1, abs=0.002)


def test_calibrate_refuses_before_it_works(folder: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "artifact").mkdir()
    sigmoid = tmp_path / "sigmoid"
    write(replace(resolve(str(model), "densenet121"), activation="sigmoid"), sigmoid)
    for arguments, sentence in (
        ([*HERE, model, "--runtime", tmp_path / "artifact", "--calibrate", tmp_path / "o"], "artifact"),
        ([*HERE, sigmoid, "--calibrate", tmp_path / "o"], "softmax"),
    ):
        result = run(folder, *arguments)
        assert isinstance(result.exception, ConfigurationError)
        assert sentence in str(result.exception)
