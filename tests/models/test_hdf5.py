"""HDF5 files that hold more, or less, than plain arrays of floats: each is refused with one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from service.errors import CheckpointError
from service.models.checkpoints.keras.hdf5 import read_arrays

LAYER = "layers/dense/vars"


def read(path: Path) -> dict[str, Any]:
    return read_arrays(path, path.name, lambda name: name.startswith("layers/"))


def write(path: Path, fill: Callable[[h5py.File], Any]) -> Path:
    with h5py.File(path, "w") as file:
        fill(file)
    return path


def _external(file: h5py.File) -> None:
    file.create_dataset(f"{LAYER}/0", (8,), "f4", external=[("/etc/hostname", 0, 32)])


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((8,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "secret", (8,))
    file.create_virtual_dataset(f"{LAYER}/0", layout)


def _cycle(file: h5py.File) -> None:
    group = file.create_group("layers/dense")
    group["again"] = file["layers"]


def _lattice(file: h5py.File) -> None:
    """A thousand million paths in a few kilobytes."""
    below = file.create_group("bottom")
    for level in range(9):
        group = file.create_group(f"level{level}")
        for name in range(10):
            group[str(name)] = below
        below = group


def _typed(dtype: Any) -> Callable[[h5py.File], Any]:
    return lambda file: file.create_dataset(f"{LAYER}/0", data=np.zeros(4, dtype))


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        pytest.param(
            lambda file: file.update({f"{LAYER}/0": h5py.SoftLink("/elsewhere")}),
            "link to elsewhere",
            id="soft",
        ),
        pytest.param(
            lambda file: file.update({"layers/x": h5py.ExternalLink("/etc/passwd", "/")}),
            "link to elsewhere",
            id="external link",
        ),
        pytest.param(
            lambda file: file.update({"optimizer": h5py.SoftLink("/layers")}),
            "link to elsewhere",
            id="unread",
        ),
        pytest.param(_external, "values in another file", id="external storage"),
        pytest.param(_virtual, "values in another file", id="virtual"),
        pytest.param(_cycle, "under a second name", id="cycle"),
        pytest.param(_lattice, "under a second name", id="lattice"),
        pytest.param(
            lambda file: file.create_dataset(f"{LAYER}/0", (2**40,), "f4"),
            "a shape without values",
            id="hollow",
        ),
        pytest.param(
            lambda file: file.create_dataset(f"{LAYER}/0", (2**40,), "f4", chunks=(4,)).write_direct(
                np.ones(4, "f4"), dest_sel=np.s_[:4]
            ),
            "more than 4 GiB",
            id="bomb",
        ),
        pytest.param(_typed("i1"), "only float weights", id="int8"),
        pytest.param(_typed("i8"), "only float weights", id="int64"),
        pytest.param(_typed("c8"), "only float weights", id="complex"),
        pytest.param(_typed("V2"), "only float weights", id="bytes that are no bfloat16"),
        pytest.param(_typed("S4"), "only float weights", id="text"),
        pytest.param(_typed([("a", "f4")]), "only float weights", id="records"),
        pytest.param(
            lambda file: file.create_dataset(f"{LAYER}/0", data=["x"], dtype=h5py.string_dtype()),
            "only float weights",
            id="objects",
        ),
    ],
)
def test_it_is_refused(tmp_path: Path, fill: Callable[[h5py.File], Any], message: str) -> None:
    path = write(tmp_path / "weights.h5", fill)
    with pytest.raises(CheckpointError, match=rf"weights\.h5.*{message}"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"not hdf5", b"\x89HDF\r\n\x1a\n" + bytes(64)])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.h5"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="no HDF5 file, or a damaged one"):
        read(path)


def test_every_truncation_is_refused_or_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "weights.h5", lambda file: file.update({f"{LAYER}/0": np.ones((64, 64), "f4")}))
    content = path.read_bytes()
    for length in range(0, len(content), 997):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read(path)


def test_what_is_float_is_read(tmp_path: Path) -> None:
    values = np.asarray([1.5, -2.25, 1e-3], "f4")

    def fill(file: h5py.File) -> None:
        for name, dtype in (("0", "f2"), ("1", "f4"), ("2", "f8"), ("3", ">f4")):
            file[f"{LAYER}/{name}"] = values.astype(dtype)
        # bfloat16 as Keras stores it: the upper half of a float32, as two opaque bytes.
        file[f"{LAYER}/4"] = (values.view("u4") >> 16).astype("u2").view("V2")
        file[f"{LAYER}/4"].attrs["dtype"] = "bfloat16"
        file["optimizer/vars/0"] = np.int32(3)

    arrays = read(write(tmp_path / "weights.h5", fill))
    assert {name[-1]: array.dtype.name for name, array in arrays.items()} == {
        "0": "float16", "1": "float32", "2": "float32", "3": "float32", "4": "float32",
    }  # fmt: skip
    for array in arrays.values():
        np.testing.assert_allclose(array.astype("f4"), values, rtol=1e-2)
