"""The values in a file of tensors: read without running anything of it, whatever else lies beside them."""

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
    """What was saved: mappings, lists, tensors, arrays. Raises `CheckpointError`.

    Always read with ``weights_only``: a pickle that would run code is refused.
    """
    match kind(path):
        case "safetensors":
            return read_safetensors(path)
        case "torch":
            return _read_pickle(path)
        case other:
            raise CheckpointError(f"'{path.name}' is a {other} file; a file of tensors is wanted here")


def read_safetensors(path: Path) -> dict[str, Any]:
    """The tensors by name, and what its head says beside them, as far as that is JSON. Raises `CheckpointError`."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            beside = _documents(file.metadata() or {})
        return {**beside, **load_file(path, device="cpu")}
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"'{path.name}' is no safetensors file, or a damaged one; fetch it again"
        ) from error


def _documents(metadata: dict[str, str]) -> dict[str, Any]:
    """All values there are texts; some of them are objects or lists that somebody wrote as JSON."""
    found: dict[str, Any] = {}
    for key, text in metadata.items():
        if text.lstrip()[:1] in ("{", "["):
            with contextlib.suppress(ValueError, RecursionError):
                found[key] = json.loads(text)
    return found


class _Aside:
    """In place of a settings object of somebody's: it takes what the file says of it, and does nothing with it."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Aside:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _mapping(*args: Any) -> OrderedDict[Any, Any]:
    """A ``defaultdict`` without the function that it would call."""
    return OrderedDict()


def _path(*parts: Any) -> str:
    return "/".join(str(part) for part in parts)


def _numpys() -> Iterator[tuple[Any, str]]:
    """What NumPy's scalars and arrays are made of; their modules were renamed in NumPy 2."""
    core = np._core.multiarray  # type: ignore[attr-defined]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        yield core._reconstruct, f"{module}._reconstruct"
        yield core.scalar, f"{module}.scalar"
    yield np.ndarray, "numpy.ndarray"
    yield np.dtype, "numpy.dtype"
    for name in dir(np.dtypes):
        if name.endswith("DType"):
            yield getattr(np.dtypes, name), f"numpy.dtypes.{name}"


#: What may lie beside weights. None of them does anything when it is made.
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

#: Whose settings objects are put aside, and which of them are dictionaries.
_SETTINGS_OF = re.compile(
    r"(omegaconf|hydra|lightning|lightning_fabric|pytorch_lightning|yacs|ml_collections|easydict|addict|munch|box|mmengine)\..*"
)
_DICTIONARIES = re.compile(r".*\.(AttributeDict|CfgNode|EasyDict|edict|Dict|Munch|Box|ConfigDict)")

#: What the restricted unpickler meets on bytes that are no pickle of ``torch.save``'s.
_DAMAGED = (
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    RecursionError,
    struct.error,
)


def _read_pickle(path: Path) -> Any:
    try:
        unknown = _unknown_types(path)
        aside = [
            (OrderedDict if _DICTIONARIES.fullmatch(name) else _Aside, name)
            for name in unknown
            if _SETTINGS_OF.fullmatch(name)
        ]
        with warnings.catch_warnings(), torch.serialization.safe_globals([*_HARMLESS, *aside]):
            # A word about pickle protocols; the file is judged by what it holds.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_objects(path.name, error)) from error
    except _DAMAGED as error:
        raise CheckpointError(
            f"'{path.name}' is no file of torch.save's, or a damaged one; fetch it again"
        ) from error


def _unknown_types(path: Path) -> list[str]:
    """Types in the file by name, those aside that are always loaded. Of before torch 1.6 they cannot be told."""
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
