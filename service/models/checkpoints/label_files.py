"""Reads labels from text, JSON or CSV, as people keep them, into classes in the order of the logits.

    tench                             one label a line
    0 tench        0: tench           a number before it (or behind it), from 0 or from 1
    n01440764 tench                   a WordNet id before it
    {"0": "tench"}                    JSON, or a Python dictionary written out
    {"0": ["n01440764", "tench"]}
    {"tench": 0}                      torchvision's class_to_idx
    ["tench", ...]
    {"id2label": {...}}               one of these under a usual key
    class_id,label                    CSV with a header

A text that begins with a brace or a bracket is never read as lines. A label that is one of ImageNet's WordNet ids
gets ImageNet's name.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from service.errors import CheckpointError
from service.labels import ClassLabel, imagenet_classes

_WNID = re.compile(r"n\d{8}")
_NUMBERED = re.compile(r"(\d+)(?:\s*[:,;.)=\t]\s*|\s+)(\S.*)")
_NUMBERED_BEHIND = re.compile(r"(\S.*?)[\s,;:]+(\d+)")

#: Known column headers, in lower case.
_INDEX = ("class_id", "id", "idx", "index", "class_index", "class_idx", "label_id", "target", "number")
_WORDNET = ("wnid", "synset", "wordnet_id", "synset_id")
_LABEL = ("label", "name", "class_name", "label_name", "class", "classes", "labels", "title", "description")

#: Keys of a JSON object under which labels are expected.
_NAMES = (
    "id2label", "idx_to_class", "class_to_idx", "label2id", "classes", "class_names", "label_names", "labels",
)  # fmt: skip

_MAX_CLASSES = 1 << 20


def read_labels(path: Path) -> tuple[ClassLabel, ...]:
    """Reads an operator's labels file. Raises `CheckpointError` if it cannot be read as one."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"the labels file '{path.name}' cannot be read as UTF-8 text: {_reason(error)}"
        ) from error
    where = f"the labels file '{path.name}'"
    stripped = text.strip()
    if stripped.startswith(("{", "[")):
        return classes_of(_literal(stripped, where), where)
    rows = _table(stripped, where, certain=path.suffix.lower() in (".csv", ".tsv"))
    return rows or _lines(stripped, where)


def read_labels_of(path: Path, count: int) -> tuple[ClassLabel, ...]:
    """Reads a labels file for a model of ``count`` classes. Raises `CheckpointError` for another number.

    Two labels for one logit are accepted: its probability is that of the second.
    """
    classes = read_labels(path)
    if count == 1 and len(classes) == 2:
        return classes[1:]
    if len(classes) != count:
        raise CheckpointError(
            f"the labels file '{path.name}' has {len(classes)} labels and the model {count} classes; "
            "give one label for each class, in the order of the logits"
        )
    return classes


def classes_of(document: Any, where: str) -> tuple[ClassLabel, ...]:
    """Returns the classes that a list or a mapping names. Raises `CheckpointError`, naming ``where``."""
    if isinstance(document, Mapping):
        nested = [document[name] for name in _NAMES if isinstance(document.get(name), Mapping | list)]
        if nested:
            return classes_of(nested[0], where)
        return _numbered(_pairs(document, where), where)
    if isinstance(document, Sequence) and not isinstance(document, str | bytes):
        return _numbered(list(enumerate(document)), where)
    raise CheckpointError(f"{where} holds no list of labels and no mapping of numbers to labels")


def _literal(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        # A printed Python dictionary, as the oldest list of ImageNet's names is.
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError) as error:
        raise CheckpointError(
            f"{where} begins like JSON and cannot be read as such; write it anew, or one label a line"
        ) from error


def _pairs(mapping: Mapping[Any, Any], where: str) -> list[tuple[int, Any]]:
    """Returns pairs of number and label, whichever of the two is the key."""
    if mapping and all(_number(key) is not None for key in mapping):
        return [(int(key), value) for key, value in mapping.items()]
    if mapping and all(_number(value) is not None for value in mapping.values()):
        return [(int(value), key) for key, value in mapping.items()]
    raise CheckpointError(f"{where} gives neither numbers for labels nor labels for numbers")


def _number(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    text = str(value)
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 8 else None


def _numbered(pairs: Sequence[tuple[int, Any]], where: str) -> tuple[ClassLabel, ...]:
    numbers = sorted(number for number, _ in pairs)
    if not numbers or len(numbers) > _MAX_CLASSES:
        raise CheckpointError(f"{where} holds no labels")
    first = numbers[0]
    if first > 1 or numbers != list(range(first, first + len(numbers))):
        raise CheckpointError(f"{where} does not number its labels 0, 1, 2, ... without a gap")
    return tuple(
        _class(number - first, entry, where) for number, entry in sorted(pairs, key=lambda pair: pair[0])
    )


def _class(number: int, entry: Any, where: str) -> ClassLabel:
    if isinstance(entry, Mapping):
        found = {str(key).lower(): value for key, value in entry.items()}
        names = [found[key] for key in _LABEL if isinstance(found.get(key), str)]
        ids = [found[key] for key in _WORDNET if isinstance(found.get(key), str)]
        entry = [*ids[:1], *names[:1]]
    if (
        isinstance(entry, list | tuple)
        and 1 <= len(entry) <= 3
        and all(isinstance(word, str) for word in entry)
    ):
        wnid = entry[0] if _WNID.fullmatch(entry[0].strip()) else None
        label = entry[1] if wnid and len(entry) > 1 else entry[0]
        return _named(number, label, wnid, where)
    if isinstance(entry, str | int | float) and not isinstance(entry, bool):
        return _named(number, str(entry), None, where)
    raise CheckpointError(f"label {number} of {where} is no text")


def _named(number: int, label: str, wnid: str | None, where: str) -> ClassLabel:
    label = label.strip()
    if not label:
        raise CheckpointError(f"label {number} of {where} is blank; give every class a label")
    if _WNID.fullmatch(label):
        known = {entry.wnid: entry.label for entry in imagenet_classes()}
        return ClassLabel(number, label, known.get(label, label))
    return ClassLabel(number, wnid, label)


def _lines(text: str, where: str) -> tuple[ClassLabel, ...]:
    lines = re.split(r"\r\n|\n|\r", text) if text else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise CheckpointError(f"line {number} of {where} is blank; give every class a label")
    lines = [line.strip() for line in lines]
    pairs = _numbers_with(lines, _NUMBERED, 1, 2) or _numbers_with(lines, _NUMBERED_BEHIND, 2, 1)
    return _numbered([(number, _split(label)) for number, label in pairs or enumerate(lines)], where)


def _numbers_with(
    lines: Sequence[str], pattern: re.Pattern[str], number: int, label: int
) -> list[tuple[int, str]] | None:
    """Returns number and label of every line; None unless each line has one, without gaps or duplicates."""
    matches = [pattern.fullmatch(line) for line in lines]
    pairs = [(int(match[number]), match[label]) for match in matches if match and len(match[number]) < 8]
    numbers = sorted(pair[0] for pair in pairs)
    if len(pairs) < len(lines) or not numbers or numbers[0] > 1 or len(lines) < 2:
        return None
    return pairs if numbers == list(range(numbers[0], numbers[0] + len(numbers))) else None


def _split(label: str) -> str | list[str]:
    wnid, _, rest = label.partition(" ")
    return [wnid, rest] if rest.strip() and _WNID.fullmatch(wnid.rstrip(",:;\t")) else label


def _table(text: str, where: str, *, certain: bool) -> tuple[ClassLabel, ...] | None:
    """Returns the rows below a header of known words; None if the text is no such table."""
    first = text.partition("\n")[0]
    delimiter = max("\t;,", key=first.count)
    try:
        header, *rows = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    except (csv.Error, ValueError) as error:
        if certain:
            raise CheckpointError(f"{where} cannot be read as CSV") from error
        return None
    words = [word.strip().lower() for word in header]
    index, wnid, label = (_column(words, known) for known in (_INDEX, _WORDNET, _LABEL))
    if (label is None and wnid is None) or (len(words) < 2 and not certain):
        return None
    if not certain and not set(words) <= {*_INDEX, *_WORDNET, *_LABEL}:
        return None
    pairs: list[tuple[int, Any]] = []
    for number, row in enumerate(row for row in rows if any(cell.strip() for cell in row)):
        if len(row) < len(words):
            raise CheckpointError(
                f"row {number + 1} of {where} has {len(row)} cells and its header {len(words)}"
            )
        given = number if index is None else _number(row[index].strip())
        if given is None:
            raise CheckpointError(f"row {number + 1} of {where} has no whole number where its header has one")
        cells = [row[column] for column in (wnid, label) if column is not None]
        pairs.append((given, cells))
    return _numbered(pairs, where)


def _column(words: list[str], known: tuple[str, ...]) -> int | None:
    return next((words.index(word) for word in known if word in words), None)


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror or "input/output error") if isinstance(error, OSError) else "it is not UTF-8"
