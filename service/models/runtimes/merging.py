"""Finds weights in the files of OpenVINO models, and lets two models share one file.

A graph (``.xml``) names the offset and the size of each constant's bytes in a file of weights. That file may hold
other bytes as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

#: Bytes of the smallest array that is searched for among the weights.
_LARGE = 1 << 20
#: Alignment of arrays in bytes, for the processor's sake.
_ALIGNED = 64


def join(graph: Path, base: Path) -> None:
    """Appends the weights of ``graph`` to those of ``base``, except arrays that are there already, and deletes its
    own file."""
    own, shared = graph.with_suffix(".bin"), base.with_suffix(".bin")
    tree = ElementTree.parse(graph)  # nosec B314: written by OpenVINO a moment ago
    with own.open("rb") as source, shared.open("r+b") as target:
        known = {_hash(target, place): place[0] for place in _places(ElementTree.parse(base))}  # nosec B314
        for data in _constants(tree):
            place = _place(data)
            name = _hash(source, place)
            if name not in known:
                source.seek(place[0])
                known[name] = _append(target, source.read(place[1]))
            data.set("offset", str(known[name]))
    tree.write(graph, encoding="utf-8", xml_declaration=True)
    own.unlink()


def place(arrays: Mapping[str, NDArray[np.float32]], graph: Path, others: Path) -> dict[str, dict[str, Any]]:
    """Returns ``{"file", "offset", "shape"}`` of each array: in the graph's weights if it is there, else in
    ``others``."""
    weights = graph.with_suffix(".bin")
    candidates = [found for found in _places(ElementTree.parse(graph)) if found[1] >= _LARGE]  # nosec B314
    places = {}
    with weights.open("rb") as known, others.open("w+b") as rest:
        for name, array in arrays.items():
            data = np.ascontiguousarray(array, np.float32)
            offset = _find(data, known, candidates)
            file = weights if offset is not None else others
            if offset is None:
                offset = _append(rest, data.tobytes())
            places[name] = {"file": file.name, "offset": offset, "shape": list(array.shape)}
        if not rest.tell():
            rest.write(b"\0")  # an empty file cannot be mapped
    return places


def _find(data: NDArray[np.float32], file: BinaryIO, candidates: list[tuple[int, int]]) -> int | None:
    sizes = [offset for offset, size in candidates if size == data.nbytes]
    if not sizes:
        return None
    wanted = hashlib.sha256(data.data.cast("B")).digest()
    return next((offset for offset in sizes if _hash(file, (offset, data.nbytes)) == wanted), None)


def _append(file: BinaryIO, data: bytes) -> int:
    end = file.seek(0, 2)
    offset = -(-end // _ALIGNED) * _ALIGNED
    file.write(b"\0" * (offset - end) + data)
    return offset


def _hash(file: BinaryIO, place: tuple[int, int]) -> bytes:
    file.seek(place[0])
    return hashlib.sha256(file.read(place[1])).digest()


def _places(tree: Any) -> Iterator[tuple[int, int]]:
    return (_place(data) for data in _constants(tree))


def _place(data: ElementTree.Element) -> tuple[int, int]:
    return int(data.attrib["offset"]), int(data.attrib["size"])


def _constants(tree: Any) -> Iterator[ElementTree.Element]:
    """Yields the elements that hold the offset and size of a constant."""
    for layer in tree.iter("layer"):
        data = layer.find("data")
        if layer.get("type") == "Const" and data is not None:
            yield data
