"""Reads arrays from Keras's HDF5 files, and only arrays that lie in these files themselves.

HDF5 can point elsewhere (soft and external links, external and virtual storage), announce shapes that it does not
hold, and carry types that run code when they are read. Weights need none of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
import numpy.typing as npt

from service.errors import CheckpointError

Array = npt.NDArray[Any]

#: Most bytes of a file's arrays: seven times the largest VGG in float32. A larger shape is an attack.
MAX_BYTES = 4 * 2**30

#: Most attributes over which a long list may be spread.
_MAX_PARTS = 1000


@contextmanager
def open_file(source: Path | BinaryIO, name: str) -> Iterator[Any]:
    """Opens an HDF5 file for reading. ``name`` is its name in messages.

    Raises `CheckpointError` for a damaged file, both when it is opened and when it is read.
    """
    try:
        with h5py.File(source, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{name} is no HDF5 file, or a damaged one; fetch it again") from error


def read_arrays(source: Path | BinaryIO, name: str, wanted: Callable[[str], bool]) -> dict[str, Array]:
    """Returns the float arrays whose path within the file is ``wanted``, as float16 or float32, by that path.

    Raises `CheckpointError` for a damaged file, and for anything that is no plain array.
    """
    with open_file(source, name) as file:
        datasets = {path: data for path, data in _walk(file, "", name, set()) if wanted(path)}
        _refuse_too_much(datasets, name)
        return {path: _array(data, f"{name}:{path}") for path, data in datasets.items()}


def attribute(group: Any, name: str) -> Any:
    """Returns a text or a list of texts that a group carries; None if it has no such attribute.

    A list that is too long for one attribute is spread over ``name0``, ``name1``, ... Raises `CheckpointError`.
    """
    if name in group.attrs:
        return _texts(group.attrs[name])
    parts: list[Any] = []
    while f"{name}{len(parts)}" in group.attrs and len(parts) < _MAX_PARTS:
        parts.append(_texts(group.attrs[f"{name}{len(parts)}"]))
    return [text for part in parts for text in part] if parts else None


def _texts(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray):
        return [_texts(item) for item in value.reshape(-1).tolist()]
    return str(value)


def group_names(source: Path | BinaryIO, name: str) -> dict[str, str]:
    """Returns the layer's name that Keras notes in each group, or an empty text, by the group's path."""
    with open_file(source, name) as file:
        return dict(_groups(file, "", name, set()))


def _groups(group: Any, prefix: str, file_name: str, seen: set[int]) -> Iterator[tuple[str, str]]:
    _refuse_twice(group, prefix, file_name, seen)
    for name in group:
        if (
            isinstance(group.get(name, getlink=True), h5py.HardLink)
            and group.get(name, getclass=True) is h5py.Group
        ):
            child = group[name]
            yield prefix + name, str(attribute(child, "name") or "")
            yield from _groups(child, f"{prefix}{name}/", file_name, seen)


def _walk(group: Any, prefix: str, file_name: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Yields every dataset below ``group`` with its path. ``seen`` holds the addresses of the groups on the way.

    A group that is reached twice would make the walk endless, or nearly: a small file can have ten names for the same
    group on each of ten levels.
    """
    _refuse_twice(group, prefix, file_name, seen)
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise CheckpointError(f"{file_name}:{prefix}{name} is a link to elsewhere and is refused")
        child = group[name]
        if isinstance(child, h5py.Group):
            yield from _walk(child, f"{prefix}{name}/", file_name, seen)
        elif isinstance(child, h5py.Dataset):
            yield prefix + name, child


def _refuse_twice(group: Any, prefix: str, file_name: str, seen: set[int]) -> None:
    address = h5py.h5o.get_info(group.id).addr
    if address in seen:
        raise CheckpointError(f"{file_name}:{prefix} is another group under a second name and is refused")
    seen.add(address)


def _refuse_too_much(datasets: dict[str, Any], file_name: str) -> None:
    for name, data in datasets.items():
        if data.external or data.is_virtual:
            raise CheckpointError(f"{file_name}:{name} keeps its values in another file and is refused")
        if data.nbytes and not data.id.get_storage_size():
            raise CheckpointError(f"{file_name}:{name} has a shape without values and is refused")
    if sum(data.nbytes for data in datasets.values()) > MAX_BYTES:
        raise CheckpointError(f"{file_name} announces more than {MAX_BYTES // 2**30} GiB and is refused")


def _array(data: Any, where: str) -> Array:
    if data.dtype.kind == "V" and data.dtype.itemsize == 2 and data.attrs.get("dtype") == "bfloat16":
        # NumPy has no bfloat16; it is the upper half of a float32.
        upper: Array = data[()].view(np.uint16).astype(np.uint32) << 16
        return upper.view(np.float32)
    if data.dtype.kind != "f" or data.dtype.itemsize > 8:
        raise CheckpointError(f"{where} is of type {data.dtype}; only float weights can be served")
    wide = data.dtype.itemsize > 2
    return np.asarray(data[()]).astype(np.float32 if wide else np.float16)
