"""Turns a Keras model's configuration into its layers in the order of computation, with nested models unfolded.

Keras 2 and 3 write the same ``{"class_name", "config": {"layers": [...]}}``, with two notations of a layer's inputs
in ``inbound_nodes``. Keras 3's files keep a layer's arrays below a path of class names:
``layers/functional/layers/conv2d_3``, numbered within each model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from service.errors import CheckpointError
from service.models.checkpoints.keras.hdf5 import Array

#: Limits: no VGG or DenseNet is nested more deeply or has more layers.
_MAX_DEPTH, _MAX_LAYERS = 8, 5000

#: Characters of a call that are kept.
_MAX_CALL = 4000


@dataclass
class Leaf:
    """One layer: its class, name and arguments, the path of its arrays, and the layers that it is computed from.

    ``config`` is None if only its weights are known.
    """

    kind: str
    name: str
    config: dict[str, Any] | None
    path: str = ""
    inputs: tuple[str, ...] = ()
    arrays: dict[int, Array] = field(default_factory=dict)
    call: str = ""
    """The arguments of its call, as JSON; those of plain arithmetic hold its numbers."""


#: Refusal of a model that is neither Functional nor Sequential.
OF_A_CLASS = (
    "holds a model of a class of somebody's own, and the file does not say how its layers follow each other; build the "
    "same as a Functional or Sequential model, with new.set_weights(old.get_weights()), and give what "
    "new.save('model.keras') writes"
)


def leaves(document: dict[str, Any], name: str) -> list[Leaf]:
    """Returns the layers that compute a model's output. Raises `CheckpointError` if the document is no model's."""
    found: dict[str, Leaf] = {}
    config = document.get("config")
    if (
        document.get("class_name") not in (None, "Sequential", "Functional", "Model")
        and isinstance(config, dict)
        and "layers" not in config
    ):
        raise CheckpointError(f"'{name}' {OF_A_CLASS}")
    try:
        output = _model(document, "layers/", ["input"], found, name, 0)
        return _on_the_way(found, output)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"the configuration of '{name}' is not as Keras writes it; save it again"
        ) from error


def input_size(document: Any) -> tuple[int, int] | None:
    """Returns height and width of the outermost model's images; None if it takes any."""
    for shape in _shapes(document, 0):
        if isinstance(shape, list) and len(shape) == 4 and shape[3] in (1, 3, 4):
            height, width = shape[1:3]
            return (int(height), int(width)) if height and width else None
    return None


def _shapes(document: Any, depth: int) -> Iterator[Any]:
    if depth > 4 * _MAX_DEPTH:
        return
    if isinstance(document, dict):
        for key in ("batch_shape", "batch_input_shape"):
            if key in document:
                yield document[key]
        build = document.get("build_config")
        if isinstance(build, dict) and "input_shape" in build and document.get("class_name") == "Sequential":
            yield build["input_shape"]
        for value in document.values():
            yield from _shapes(value, depth + 1)
    elif isinstance(document, list):
        for value in document:
            yield from _shapes(value, depth + 1)


def _model(
    document: dict[str, Any], prefix: str, inputs: list[str], found: dict[str, Leaf], name: str, depth: int
) -> str:
    """Adds a model's layers to ``found`` and returns the key of the layer that gives its output."""
    config = document["config"]
    layers = config["layers"]
    if depth > _MAX_DEPTH or len(found) + len(layers) > _MAX_LAYERS:
        raise CheckpointError(f"'{name}' holds more layers than any VGG or DenseNet")
    paths = _paths(layers, prefix)
    if document["class_name"] == "Sequential":
        current = inputs
        for layer, path in zip(layers, paths, strict=True):
            if layer["class_name"] != "InputLayer":
                current = [_place(layer, path, current, found, name, depth)]
        return current[0]
    outputs: dict[str, str] = {}
    for position, entry in enumerate(_listed(config["input_layers"])):
        outputs[entry] = inputs[min(position, len(inputs) - 1)]
    waiting = [
        (layer, path)
        for layer, path in zip(layers, paths, strict=True)
        if layer["class_name"] != "InputLayer"
    ]
    while waiting:
        ready = [item for item in waiting if all(source in outputs for source in _sources(item[0]))]
        if not ready:
            raise ValueError("a circle")
        for layer, path in ready:
            sources = [outputs[source] for source in _sources(layer)]
            outputs[_called(layer)] = _place(layer, path, sources, found, name, depth)
        waiting = [item for item in waiting if _called(item[0]) not in outputs]
    (last,) = _listed(config["output_layers"])
    return outputs[last]


def _place(
    layer: dict[str, Any], path: str, inputs: list[str], found: dict[str, Leaf], name: str, depth: int
) -> str:
    config = layer["config"]
    if isinstance(config, dict) and isinstance(config.get("layers"), list):
        return _model(layer, f"{path}/layers/", inputs, found, name, depth + 1)
    if len(layer.get("inbound_nodes") or []) > 1:
        raise CheckpointError(
            f"'{name}' uses its layer '{_called(layer)}' more than once, which no VGG or DenseNet does"
        )
    found[path] = Leaf(str(layer["class_name"]), _called(layer), dict(config), path, tuple(inputs))
    found[path].call = json.dumps(layer.get("inbound_nodes"))[:_MAX_CALL]
    return path


def _called(layer: dict[str, Any]) -> str:
    return str(layer.get("name") or layer["config"]["name"])


def _paths(layers: list[dict[str, Any]], prefix: str) -> list[str]:
    counts: dict[str, int] = {}
    paths = []
    for layer in layers:
        kind = snake_case(str(layer["class_name"]))
        number = counts.get(kind, 0)
        counts[kind] = number + 1
        paths.append(f"{prefix}{kind}_{number}" if number else prefix + kind)
    return paths


def snake_case(name: str) -> str:
    """Returns ``name`` as `keras.src.utils.naming.to_snake_case` does."""
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _listed(entries: Any) -> list[str]:
    """Returns the names in ``["name", 0, 0]`` or ``[["name", 0, 0], ...]``."""
    return [str(entries[0])] if isinstance(entries[0], str) else [str(entry[0]) for entry in entries]


def _sources(layer: dict[str, Any]) -> list[str]:
    nodes = layer.get("inbound_nodes") or []
    return list(_histories(nodes[0], 0)) if nodes else []


def _histories(node: Any, depth: int) -> Iterator[str]:
    """Yields the names of layers in a node of Keras 3 (``keras_history``) or of Keras 2 (``[name, node, tensor,
    ...]``)."""
    if depth > 4 * _MAX_DEPTH:
        return
    if isinstance(node, dict):
        history = node.get("keras_history")
        if isinstance(history, list):
            yield str(history[0])
            return
        for value in node.values():
            yield from _histories(value, depth + 1)
    elif isinstance(node, list):
        if (
            len(node) >= 3
            and isinstance(node[0], str)
            and isinstance(node[1], int)
            and isinstance(node[2], int)
        ):
            yield node[0]
            return
        for value in node:
            yield from _histories(value, depth + 1)


def _on_the_way(found: dict[str, Leaf], output: str) -> list[Leaf]:
    """Returns the layers that lead to the output, in their order."""
    needed, waiting = set(), [output]
    while waiting:
        path = waiting.pop()
        if path in found and path not in needed:
            needed.add(path)
            waiting += found[path].inputs
    return [leaf for path, leaf in found.items() if path in needed]
