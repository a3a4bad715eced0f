"""Reads Keras's files into a model's layers with their arrays, as `graph.Leaf`.

NAME.keras         a zip: config.json with the layers, model.weights.h5
NAME.h5            a whole model in HDF5: the layers in an attribute, model_weights/<layer>/...
NAME.weights.h5    the weights of Keras 3 alone: layers by class and number, each with its name
NAME.h5            the weights of Keras 2 alone, as keras.applications downloads them
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from service.errors import CheckpointError
from service.models.checkpoints.keras import graph
from service.models.checkpoints.keras.graph import Leaf
from service.models.checkpoints.keras.hdf5 import (
    MAX_BYTES,
    Array,
    attribute,
    group_names,
    open_file,
    read_arrays,
)

#: The arrays of a layer in the order of Keras 3's numbers, by the beginnings of their Keras 2 names.
_VARIABLES = (("kernel", "gamma", "W"), ("bias", "beta", "b"), ("moving_mean",), ("moving_variance",))

_DATASET = re.compile(r"(?P<layer>layers/.*)/vars/(?P<number>\d)")

_SNAKE = {
    graph.snake_case(kind): kind
    for kind in (
        "InputLayer", "Conv2D", "Dense", "BatchNormalization", "Flatten", "GlobalAveragePooling2D",
        "GlobalMaxPooling2D", "MaxPooling2D", "AveragePooling2D", "ZeroPadding2D", "Dropout", "Activation", "ReLU",
        "Concatenate", "Rescaling", "Normalization",
    )
}  # fmt: skip


@dataclass(frozen=True)
class KerasFile:
    """The layers of a file in order.

    ``size`` is (height, width) if the file tells it; ``complete`` is True if all layers are there with their
    arguments.
    """

    leaves: list[Leaf]
    size: tuple[int, int] | None
    complete: bool
    document: dict[str, Any] | None
    """The model's configuration, if the file holds it."""
    model_name: str = ""


def read(path: Path) -> KerasFile:
    """Reads any of the four kinds. Raises `CheckpointError`."""
    if zipfile.is_zipfile(path):
        return _read_keras(path)
    with open_file(path, path.name) as file:
        text, names = attribute(file, "model_config"), attribute(file, "layer_names")
        wrapped = "model_weights" in file
        names = names if names is not None or not wrapped else attribute(file["model_weights"], "layer_names")
    if text is not None:
        return _read_whole(path, _json(text, path.name))
    if names is not None:
        return _read_classic(path, [str(name) for name in names], "model_weights/" if wrapped else "")
    return _read_weights(path)


def _json(text: Any, name: str) -> dict[str, Any]:
    try:
        document = json.loads(str(text))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the configuration in '{name}' is no JSON; save the model again") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"the configuration in '{name}' is no JSON object; save the model again")
    return document


def _read_keras(path: Path) -> KerasFile:
    try:
        with zipfile.ZipFile(path) as archive:
            config = archive.read("config.json").decode()
            weights = _member(archive, "model.weights.h5")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise CheckpointError(f"'{path.name}' is no .keras file, or a damaged one; save it again") from error
    document = _json(config, path.name)
    arrays = read_arrays(weights, path.name, lambda name: _DATASET.fullmatch(name) is not None)
    return _with_arrays(document, _by_layer(arrays), path.name)


def _member(archive: zipfile.ZipFile, name: str) -> BinaryIO:
    if archive.getinfo(name).file_size > MAX_BYTES:
        raise CheckpointError(f"{name} in the .keras file announces more than a VGG holds and is refused")
    return io.BytesIO(archive.read(name))


def _by_layer(arrays: dict[str, Array]) -> dict[str, dict[int, Array]]:
    layers: dict[str, dict[int, Array]] = {}
    for name, array in arrays.items():
        match = _DATASET.fullmatch(name)
        if match:
            layers.setdefault(match["layer"], {})[int(match["number"])] = array
    return layers


def _with_arrays(document: dict[str, Any], arrays: dict[str, dict[int, Array]], name: str) -> KerasFile:
    opened = _opened(document)
    leaves = graph.leaves(opened, name)
    for leaf in leaves:
        leaf.arrays = arrays.get(leaf.path, {})
    for place in sorted(arrays.keys() - {leaf.path for leaf in leaves}):
        if re.search(r"/(conv2d|dense|batch_normalization)(_\d+)?$", place):
            raise CheckpointError(
                f"'{name}' contradicts itself: its configuration has no layer for '{place}'; save it again"
            )
    return KerasFile(leaves, graph.input_size(opened), True, document)


def _opened(document: dict[str, Any]) -> dict[str, Any]:
    """Returns a document with layers in place of KerasCV's backbone, whose arguments stand for them."""
    config = document.get("config")
    if document.get("class_name") != "VGG16Backbone" or not isinstance(config, dict):
        return document
    layers: list[tuple[str, dict[str, Any]]] = []
    if config.get("include_rescaling"):
        layers.append(("Rescaling", {"name": "rescaling", "scale": 1 / 255, "offset": 0.0}))
    for stage, count in enumerate((2, 2, 3, 3, 3), start=1):
        for number in range(1, count + 1):
            same = {"kernel_size": [3, 3], "strides": [1, 1], "padding": "same", "activation": "relu"}
            layers.append(("Conv2D", {"name": f"block{stage}_conv{number}", **same}))
        pool = {"pool_size": [2, 2], "strides": [2, 2], "padding": "valid"}
        layers.append(("MaxPooling2D", {"name": f"block{stage}_pool", **pool}))
    if config.get("include_top"):
        layers.append(("Flatten", {"name": "flatten"}))
        last = config.get("classifier_activation") or "linear"
        for name, activation in (("fc1", "relu"), ("fc2", "relu"), ("predictions", last)):
            layers.append(("Dense", {"name": name, "activation": activation}))
    elif config.get("pooling") in ("avg", "max"):
        kind = "GlobalAveragePooling2D" if config["pooling"] == "avg" else "GlobalMaxPooling2D"
        layers.append((kind, {"name": "pooling"}))
    opened = [{"class_name": kind, "config": settings} for kind, settings in layers]
    shape = [None, *(config.get("input_shape") or (None, None, 3))]
    return {"class_name": "Sequential", "config": {"layers": opened, "batch_input_shape": shape}}


def _read_whole(path: Path, document: dict[str, Any]) -> KerasFile:
    leaves = graph.leaves(_opened(document), path.name)
    exact, loose = _named_arrays(path, "model_weights/")
    for leaf in leaves:
        leaf.arrays = exact.get(leaf.name) or loose.get(leaf.name, {})
    return KerasFile(leaves, graph.input_size(_opened(document)), True, document)


Named = dict[str, dict[int, Array]]


def _named_arrays(path: Path, prefix: str) -> tuple[Named, Named]:
    """Returns arrays by their layers' names, which may contain slashes, and by the last part of these names alone.

    The top group is a layer's or a nested model's. Below it stands the layer's name again, under the models that it
    is in.
    """
    arrays = read_arrays(path, path.name, lambda name: name.startswith(prefix) and "optimizer" not in name)
    layers = _by_group({name.removeprefix(prefix): array for name, array in arrays.items()})
    exact: Named = {}
    loose: Named = {}
    for inner, found in layers.items():
        parts = inner.split("/")
        half, rest = divmod(len(parts), 2)
        own = "/".join(parts[:half]) if not rest and parts[:half] == parts[half:] else "/".join(parts[1:])
        exact[own or inner] = found
        loose[parts[-1]] = found
    return exact, loose


def _by_group(arrays: Mapping[str, Array]) -> Named:
    """Returns the arrays by their group, numbered as in Keras 3, from Keras 2's paths such as ``fc1/fc1/kernel:0``."""
    layers: Named = {}
    for path, array in arrays.items():
        group, _, variable = path.partition(":")[0].rpartition("/")
        number = _variable(variable)
        if number is not None:
            layers.setdefault(group, {})[number] = array
    return layers


def _variable(name: str) -> int | None:
    for number, beginnings in enumerate(_VARIABLES):
        for beginning in beginnings:
            if re.fullmatch(rf"(.*_)?{beginning}(_\d+)?", name):
                return number
    return None


def _read_classic(path: Path, names: list[str], prefix: str) -> KerasFile:
    """Reads layers in order, each by its name and by the shapes of its arrays."""
    arrays = read_arrays(path, path.name, lambda name: name.startswith(prefix) and "optimizer" not in name)
    leaves: list[Leaf] = []
    for name in names:
        own = {key: array for key, array in arrays.items() if key.startswith(f"{prefix}{name}/")}
        layers = _by_group(own)
        ordered = _in_order(path, prefix + name, layers)
        if not ordered:
            leaves.append(Leaf(_kind_by_name(name), name, None))
        for inner in ordered:
            called = name if len(ordered) == 1 else inner.rpartition("/")[2]
            leaves.append(Leaf(_kind_by_arrays(layers[inner]), called, None, arrays=layers[inner]))
    return KerasFile(leaves, None, False, None, model_name=path.name)


def _in_order(path: Path, group: str, layers: dict[str, dict[int, Array]]) -> list[str]:
    """Returns the layers of a nested model in the order of ``weight_names``; HDF5 itself sorts by name."""
    with open_file(path, path.name) as file:
        listed = attribute(file[group], "weight_names")
    ordered: dict[str, None] = {}
    for entry in listed if listed is not None else ():
        inner = f"{group}/{str(entry).partition(':')[0].rpartition('/')[0]}"
        if inner in layers:
            ordered.setdefault(inner)
    return [*ordered, *(inner for inner in layers if inner not in ordered)]


def _kind_by_arrays(arrays: dict[int, Array]) -> str:
    first = arrays.get(0)
    if first is not None and first.ndim == 4:
        return "Conv2D"
    return "Dense" if first is not None and first.ndim == 2 else "BatchNormalization"


def _kind_by_name(name: str) -> str:
    plain = re.sub(r"_\d+$", "", name).rpartition("/")[2]
    if plain in ("avg_pool", "max_pool"):
        return "GlobalAveragePooling2D" if plain == "avg_pool" else "GlobalMaxPooling2D"
    return _SNAKE.get(plain, "Unknown")


def _read_weights(path: Path) -> KerasFile:
    """Reads the weights of Keras 3: the order is known within each class only."""
    arrays = read_arrays(path, path.name, lambda name: _DATASET.fullmatch(name) is not None)
    by_layer = _by_layer(arrays)
    names = group_names(path, path.name)
    groups = {path.rpartition("/vars")[0] for path in names if path.endswith("/vars")} | set(by_layer)
    if groups and not by_layer:
        raise CheckpointError(f"'{path.name}' {graph.OF_A_CLASS}")
    leaves = []
    for group in sorted(groups, key=_place):
        kind = _SNAKE.get(re.sub(r"_\d+$", "", group.rpartition("/")[2]))
        if kind is not None:
            called = names.get(f"{group}/vars") or group.rpartition("/")[2]
            leaves.append(Leaf(kind, called, None, group, arrays=by_layer.get(group, {})))
    return KerasFile(leaves, None, False, None, model_name=names.get("vars", ""))


def _place(group: str) -> tuple[int, list[tuple[str, int]]]:
    """Sort key of a group: the layers of a nested backbone first, and each class by its numbers."""
    parts = []
    for part in group.split("/"):
        match = re.fullmatch(r"(.*?)(?:_(\d+))?", part)
        assert match is not None
        parts.append((match[1], int(match[2] or 0)))
    return (-len(parts), parts)
