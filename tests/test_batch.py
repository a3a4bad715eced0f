"""`service.batch.Classifier`: rows in, rows out, the answers of `classify`, and nothing lost to a bad row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from service.batch import Classifier
from service.cli.main import cli
from service.errors import ConfigurationError

SAMPLES = sorted((Path(__file__).resolve().parents[1] / "samples").glob("*.jpg"))


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier(weights="demo", device="cpu", top_k=3)


def column(values: list[Any]) -> Any:
    made = np.empty(len(values), dtype=object)
    made[:] = values
    return made


def test_each_row_has_the_answer_of_classify(classifier: Classifier) -> None:
    by_bytes = classifier(
        {"bytes": column([path.read_bytes() for path in SAMPLES]), "id": np.arange(len(SAMPLES))}
    )
    by_path = classifier({"path": column([str(path) for path in SAMPLES])})
    asked = ["classify", *map(str, SAMPLES), "--weights", "demo", "--top-k", "3", "--format", "json"]
    printed = json.loads(CliRunner().invoke(cli, asked).stdout)
    for row, document in enumerate(printed):
        wanted = document["predictions"]
        for rows in (by_bytes, by_path):
            assert rows["error"][row] == ""
            assert rows["class_ids"][row] == [entry["class_id"] for entry in wanted]
            assert rows["labels"][row] == [entry["label"] for entry in wanted]
            assert rows["probabilities"][row] == pytest.approx(
                [entry["probability"] for entry in wanted], abs=1e-5
            )
    assert by_bytes.keys() == {"id", "class_ids", "labels", "probabilities", "error"}
    assert list(by_bytes["id"]) == list(range(len(SAMPLES)))


def test_a_bad_row_is_a_row_with_an_error(classifier: Classifier, tmp_path: Path) -> None:
    good = SAMPLES[0].read_bytes()
    rows = classifier({"bytes": column([good, b"", good[: len(good) // 3], b"no picture", good])})
    assert [bool(error) for error in rows["error"]] == [False, True, True, True, False]
    assert [len(labels) for labels in rows["labels"]] == [3, 0, 0, 0, 3]
    assert rows["labels"][0] == rows["labels"][4]
    missing = classifier({"path": column([str(tmp_path / "none.jpg"), str(SAMPLES[0])])})
    assert missing["error"][0]
    assert missing["labels"][1] == rows["labels"][0]


def test_no_rows_are_no_rows(classifier: Classifier) -> None:
    assert len(classifier({"bytes": column([])})["error"]) == 0


def test_rows_without_an_image_are_refused_in_words(classifier: Classifier) -> None:
    with pytest.raises(ConfigurationError, match="neither a column 'bytes' nor 'path'; they have url"):
        classifier({"url": column(["x"])})
