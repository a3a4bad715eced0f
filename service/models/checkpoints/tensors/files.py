"""Reads the values in a file of tensors without running code from it."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import decimal
import fractions
import json
import logging
import pickle
import re
import struct
import types
import uuid
import warnings
from collections import OrderedDict, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file

from service.errors import CheckpointError
from service.models.checkpoints.tensors.recognise import kind

_log = logging.getLogger(__name__)


def read_values(path: Path) -> Any:
    """Returns the saved values: mappings, lists, tensors, arrays. Raises `CheckpointError`.

    Pickles are read with ``weights_only``: one that would run code is refused.
    """
    match kind(path):
        case "safetensors":
            return read_safetensors(path)
        case "torch":
            return _read_pickle(path)
        case other:
            raise CheckpointError(f"'{path.name}' is a {other} file; a file of tensors is wanted here")


def read_safetensors(path: Path) -> dict[str, Any]:
    """Returns the tensors by name, and JSON objects and lists of the file's metadata. Raises `CheckpointError`."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            beside = _documents(file.metadata() or {})
        return {**beside, **load_file(path, device="cpu")}
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"'{path.name}' is no safetensors file, or a damaged one; fetch it again"
        ) from error


def _documents(metadata: dict[str, str]) -> dict[str, Any]:
    """Parses those metadata values, all of them texts, that are JSON objects or lists."""
    found: dict[str, Any] = {}
    for key, text in metadata.items():
        if text.lstrip()[:1] in ("{", "["):
            with contextlib.suppress(ValueError, RecursionError):
                found[key] = json.loads(text)
    return found


class _Aside:
    """Takes the place of a settings object of an unknown class: it accepts any state and does nothing with it."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Aside:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _mapping(*args: Any) -> OrderedDict[Any, Any]:
    """Takes the place of a ``defaultdict``, without the function that it would call."""
    return OrderedDict()


def _path(*parts: Any) -> str:
    return "/".join(str(part) for part in parts)


def _numpys() -> Iterator[tuple[Any, str]]:
    """Yields the parts of NumPy's scalars and arrays; their modules were renamed in NumPy 2."""
    core = np._core.multiarray  # type: ignore[attr-defined]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        yield core._reconstruct, f"{module}._reconstruct"
        yield core.scalar, f"{module}.scalar"
    yield np.ndarray, "numpy.ndarray"
    yield np.dtype, "numpy.dtype"
    for name in dir(np.dtypes):
        if name.endswith("DType"):
            yield getattr(np.dtypes, name), f"numpy.dtypes.{name}"


#: Types that may lie beside weights. Making one of them has no side effect.
_HARMLESS: list[Any] = [
    *_numpys(),
    argparse.Namespace,
    types.SimpleNamespace,
    deque,
    *(datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone),
    *(decimal.Decimal, fractions.Fraction, uuid.UUID),
    *((kind, f"builtins.{kind.__name__}") for kind in (dict, list, tuple, int, float, str, bool, bytes)),
    *((kind, f"builtins.{kind.__name__}") for kind in (frozenset, range, slice)),
    (_mapping, "collections.defaultdict"),
    *(
        (_path, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")
    ),
]

#: Libraries whose settings objects are replaced by `_Aside`, and those of them that are dictionaries.
_SETTINGS_OF = re.compile(
    r"(omegaconf|hydra|lightning|lightning_fabric|pytorch_lightning|yacs|ml_collections|easydict|addict|munch|box|mmengine)\..*"
)
_DICTIONARIES = re.compile(r".*\.(AttributeDict|CfgNode|EasyDict|edict|Dict|Munch|Box|ConfigDict)")

#: Errors of the restricted unpickler on bytes that ``torch.save`` did not write.
_DAMAGED = (
    RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    ArithmeticError, MemoryError, RecursionError, struct.error,
)  # fmt: skip


def _read_pickle(path: Path) -> Any:
    try:
        unknown = _unknown_types(path)
        aside = [
            (OrderedDict if _DICTIONARIES.fullmatch(name) else _Aside, name)
            for name in unknown
            if _SETTINGS_OF.fullmatch(name)
        ]
        with warnings.catch_warnings(), torch.serialization.safe_globals([*_HARMLESS, *aside]):
            # torch warns about pickle protocols; the file's content is judged instead.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_objects(path.name, error)) from error
    except _DAMAGED as error:
        raise CheckpointError(
            f"'{path.name}' is no file of torch.save's, or a damaged one; fetch it again"
        ) from error


def _unknown_types(path: Path) -> list[str]:
    """Returns unknown types in the file by name; none for files of torch before 1.6, which cannot be scanned."""
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except (pickle.UnpicklingError, *_DAMAGED):
        return []


def _objects(name: str, error: pickle.UnpicklingError) -> str:
    match = re.search(r"GLOBAL ([\w.]+)", str(error))
    if match is None:
        return f"'{name}' is damaged, or holds more than tensors and was not run; fetch or save it again"
    return (
        f"'{name}' holds a Python object ({match[1]}) and not weights alone, and loading that would run code; "
        "where you trust it, save model.state_dict() of it and give that: "
        f"python -c \"import torch; m = torch.load('{name}', weights_only=False); "
        "torch.save(m.state_dict() if hasattr(m, 'state_dict') else m['state_dict'], 'weights.pth')\""
    )
