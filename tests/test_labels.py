"""Labels by index: the built-in thousand and an operator's own file."""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision.models._meta import _IMAGENET_CATEGORIES

from service.errors import CheckpointError
from service.labels import ClassLabel, default_classes, imagenet_classes
from service.models.checkpoints.label_files import read_labels


def test_the_thousand_are_torchvisions_with_their_wnids() -> None:
    classes = imagenet_classes()
    assert [entry.label for entry in classes] == _IMAGENET_CATEGORIES
    assert [entry.class_id for entry in classes] == list(range(1000))
    assert classes[285] == ClassLabel(285, "n02124075", "Egyptian cat")
    # ILSVRC's class order is that of the WordNet ids, and each is one class.
    wnids = [entry.wnid or "" for entry in classes]
    assert wnids == sorted(set(wnids))


def test_other_counts_get_plain_names() -> None:
    assert default_classes(1000) == imagenet_classes()
    assert default_classes(2) == (ClassLabel(0, None, "class 0"), ClassLabel(1, None, "class 1"))


def test_a_labels_file_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeffcat\r\ndog \r\nЁж\n\n".encode())
    assert [entry.label for entry in read_labels(path)] == ["cat", "dog", "Ёж"]


@pytest.mark.parametrize("content", [b"cat\n\ndog\n", b"\xff\xfe"])
def test_a_bad_labels_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"labels\.txt"):
        read_labels(path)


def test_a_missing_labels_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read_labels(tmp_path / "labels.txt")


#: Names as people give them: words, commas within, other scripts; no number that a form could take for its own.
NAMES = st.lists(
    st.text(st.characters(categories=["Lu", "Ll", "Lo"]), min_size=1, max_size=8).map(
        lambda word: f"a {word}"
    ),
    min_size=2,
    max_size=12,
    unique=True,
)


def _csv(names: list[str], header: str, row: str) -> str:
    return "\n".join([header, *(row.format(number, name) for number, name in enumerate(names))])


FORMS: dict[str, Callable[[list[str]], str]] = {
    "lines": "\n".join,
    "CRLF": lambda names: "\r\n".join(names) + "\r\n",
    "numbered": lambda names: "\n".join(f"{number} {name}" for number, name in enumerate(names)),
    "numbered from one, colon": lambda names: "\n".join(f"{n}: {name}" for n, name in enumerate(names, 1)),
    "numbered behind": lambda names: "\r\n".join(f"{name} {number}" for number, name in enumerate(names)),
    "number to label": lambda names: json.dumps({str(n): name for n, name in enumerate(names)}),
    "number to WordNet id and label": lambda names: json.dumps(
        {str(n): [f"n{n:08d}", name] for n, name in enumerate(names)}
    ),
    "label to number": lambda names: json.dumps({name: n for n, name in reversed([*enumerate(names)])}),
    "list": lambda names: json.dumps(names, indent=1),
    "list of objects": lambda names: json.dumps([{"id": n, "name": name} for n, name in enumerate(names)]),
    "under a name": lambda names: json.dumps({"id2label": {str(n): name for n, name in enumerate(names)}}),
    "Python": lambda names: repr(dict(enumerate(names))),
    "CSV": lambda names: _csv(names, "class_id,label", "{},{}"),
    "CSV, columns the other way, CRLF": lambda names: _csv(names, "label,index", "{1},{0}").replace("\n", "\r\n"),
    "TSV": lambda names: _csv(names, "index\tname", "{}\t{}"),
    "CSV, semicolons and quotes": lambda names: _csv(names, "id;class", '{};"{}"'),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=NAMES, bom=st.booleans())
def test_every_form_gives_the_labels_that_were_written(
    tmp_path: Path, form: str, names: list[str], bom: bool
) -> None:
    path = tmp_path / "labels.any"
    path.write_bytes((("\ufeff" if bom else "") + FORMS[form](names)).encode())
    assert [entry.label for entry in read_labels(path)] == names


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from("{["), st.text(max_size=60), st.sampled_from(["", " ", "\n", "\ufeff", "\t\n"]))
def test_a_text_that_begins_like_json_is_never_read_as_lines(
    tmp_path: Path, first: str, rest: str, before: str
) -> None:
    text = before + first + rest
    path = tmp_path / "labels.txt"
    path.write_text(text, "utf-8", newline="")
    with contextlib.suppress(CheckpointError):
        assert read_labels(path)
        # Only what a parser of JSON or of Python's literals makes a list or a mapping of.
        assert isinstance(_parsed(text.strip().lstrip("\ufeff")), dict | list)


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return ast.literal_eval(text)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(st.binary(max_size=80), st.text(max_size=80).map(str.encode)),
    st.sampled_from([".txt", ".csv", ""]),
)
def test_any_labels_file_is_labels_or_a_sentence(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"labels{suffix}"
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        classes = read_labels(path)
        assert [entry.class_id for entry in classes] == list(range(len(classes)))
        assert all(entry.label.strip() for entry in classes)
