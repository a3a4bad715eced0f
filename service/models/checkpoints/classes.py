"""Class names that a file of weights holds beside the tensors."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from service.errors import CheckpointError
from service.labels import ClassLabel, default_classes
from service.models.checkpoints.label_files import classes_of

_log = logging.getLogger(__name__)

#: Keys under which training scripts and libraries store class names, best first.
_KEYS = (
    "class_to_idx", "idx_to_class", "id2label", "label2id", "class_names", "label_names", "classes", "CLASSES",
    "labels", "categories",
)  # fmt: skip

#: Limits of the search: deeper nesting and longer lists hold no class names.
_MAX_DEPTH, _FEW = 6, 8


def classes_beside(values: Any, count: int, name: str) -> tuple[ClassLabel, ...]:
    """Returns the names of ``count`` classes found in ``values``, else the default classes."""
    for key in _KEYS:
        for found in _under(values, key, 0):
            classes = _read(found)
            if classes is None:
                continue
            if len(classes) == count or (count == 1 and len(classes) == 2):
                return classes
            _log.warning(
                "%s names %d classes in %s and has %d; that is left out", name, len(classes), key, count
            )
    return default_classes(count)


def _under(values: Any, key: str, depth: int) -> Iterator[Any]:
    if isinstance(values, Namespace):
        values = vars(values)
    if isinstance(values, list | tuple) and len(values) <= _FEW:
        for value in values:
            yield from _under(value, key, depth + 1)
    if not isinstance(values, Mapping) or depth > _MAX_DEPTH:
        return
    if key in values:
        yield values[key]
    for value in values.values():
        yield from _under(value, key, depth + 1)


def _read(found: Any) -> tuple[ClassLabel, ...] | None:
    if isinstance(found, np.ndarray):
        found = found.tolist()
    try:
        return classes_of(list(found) if isinstance(found, tuple) else found, "the file")
    except CheckpointError:
        return None
