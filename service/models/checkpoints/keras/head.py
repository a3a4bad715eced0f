"""Turns the layers behind a Keras model's backbone into a head as data, with its tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from service.errors import CheckpointError
from service.models.checkpoints.checkpoint import Activation
from service.models.checkpoints.keras.graph import Leaf
from service.models.checkpoints.keras.layers import dense
from service.models.configuration import Configuration
from service.models.head import Activate, Adapt, Flatten, Layer, Linear, Nonlinearity, Norm, Pool, Pooling
from service.models.options import Options

Size = tuple[int, int]

#: Keras's activations that may stand between two layers, with the slope of those that have one.
_PLAIN: tuple[Nonlinearity, ...] = (
    *("linear", "relu", "relu6", "selu", "gelu", "silu", "mish", "softplus", "sigmoid", "tanh", "softmax"),
)
_ACTIVATIONS: dict[str, Activate] = {
    **{name: Activate(name) for name in _PLAIN},
    "swish": Activate("silu"),
    "hard_silu": Activate("hard_swish"),
    "hard_swish": Activate("hard_swish"),
    "elu": Activate("elu", slope=1.0),
    "leaky_relu": Activate("leaky_relu", slope=0.2),
}

_POOLS: dict[str, Pooling] = {"GlobalAveragePooling2D": "avg", "GlobalMaxPooling2D": "max"}


@dataclass
class KerasHead:
    """A head: its numbered layers, their tensors, and the activation that turns logits into scores."""

    layers: tuple[Layer, ...]
    tensors: dict[str, Tensor]
    activation: Activation


def pools_by_maximum(leaves: list[Leaf]) -> bool:
    """Returns True if features are made of the backbone's map by global maximum pooling."""
    return any(_POOLS.get(leaf.kind) == "max" for leaf in leaves)


def read_head(
    leaves: list[Leaf],
    configuration: Configuration,
    size: Size,
    options: Options,
    *,
    complete: bool,
    name: str,
) -> KerasHead | None:
    """Returns the head; None if only pooling follows the backbone, so that the model has features only.

    ``complete`` is True if all layers are there with their arguments. Raises `CheckpointError`.
    """
    if not any(leaf.kind == "Dense" for leaf in leaves):
        for leaf in leaves:
            if leaf.arrays or leaf.kind not in {*_POOLS, "Flatten", "AveragePooling2D", "MaxPooling2D"}:
                raise CheckpointError(_unknown(leaf, name))
        return None
    if not complete:
        leaves = _completed(leaves, configuration, options, name)
    reader = _Reader(configuration, size, name)
    for leaf in leaves:
        reader.add(leaf)
    return reader.finish(options.classifier_activation)


def _unknown(leaf: Leaf, name: str) -> str:
    return (
        f"the head of '{name}' has a layer '{leaf.name}' ({leaf.kind}) that is not known here; Flatten, global "
        "pooling, Dense, BatchNormalization, activations and Dropout are"
    )


def _completed(leaves: list[Leaf], configuration: Configuration, options: Options, name: str) -> list[Leaf]:
    """Completes weights without a configuration: by rules where these have one answer, else from the options."""
    if any(leaf.kind == "BatchNormalization" for leaf in leaves):
        raise CheckpointError(
            f"the head of '{name}' has a batch norm, and weights alone do not say where; save the whole model: "
            "model.save('model.keras')"
        )
    found = [leaf for leaf in leaves if leaf.kind == "Dense"]
    pools = [leaf for leaf in leaves if leaf.kind != "Dense"]
    if options.pooling in ("avg", "max"):
        kind = next(kind for kind, by in _POOLS.items() if by == options.pooling)
        pools = [Leaf(kind, options.pooling, None)]
    elif not pools and found[0].arrays[0].shape[0] != configuration.width:
        pools = [Leaf("Flatten", "flatten", None)]
    elif len(pools) != 1:
        raise CheckpointError(
            f"'{name}' does not say how its map becomes a vector; add ?pooling=avg or ?pooling=max to its name"
        )
    own = [leaf.name for leaf in found] == ["fc1", "fc2", "predictions"]
    between = options.head_activation or ("relu" if own or _numbered(found) else None)
    if len(found) > 1 and between is None:
        raise CheckpointError(
            f"'{name}' does not say what stands between the dense layers of its head; add ?head_activation=relu, or "
            "what else it is, to its name"
        )
    last = "sigmoid" if found[-1].arrays[0].shape[-1] == 1 else "softmax"
    settings = [{"activation": between}] * (len(found) - 1) + [
        {"activation": options.classifier_activation or last}
    ]
    given = [
        Leaf("Dense", leaf.name, config, arrays=leaf.arrays)
        for leaf, config in zip(found, settings, strict=True)
    ]
    return [*pools, *given]


def _numbered(found: list[Leaf]) -> bool:
    """Returns True for three layers with numbers only, as KerasCV has them in files without names."""
    return len(found) == 3 and [leaf.name for leaf in found] == ["dense", "dense_1", "dense_2"]


class _Reader:
    def __init__(self, configuration: Configuration, size: Size, name: str) -> None:
        self.name, self.width = name, configuration.width
        self.map = _map_size(configuration, size)
        self.layers: list[Layer] = []
        self.tensors: dict[str, Tensor] = {}
        #: Height and width of the flattened map before the next layer, in Keras's order; None otherwise.
        self.flat: Size | None = None
        self.is_vector = False
        self.number = 0

    def add(self, leaf: Leaf) -> None:
        config = leaf.config or {}
        if leaf.kind in _POOLS and not self.is_vector and not config.get("keepdims"):
            self._append(Pool(_POOLS[leaf.kind]))
            self.is_vector = True
        elif leaf.kind == "AveragePooling2D" and not self.is_vector:
            self._average(leaf, config)
        elif leaf.kind == "Flatten":
            if not self.is_vector:
                self._append(Flatten())
                self.flat, self.is_vector = self.map, True
        elif leaf.kind == "Dense" and self.is_vector:
            self._dense(leaf, config)
        elif leaf.kind == "BatchNormalization" and self.is_vector:
            self._norm(leaf, config)
        elif (activation := _activation(leaf, config)) is not None and self.is_vector:
            self._append(activation)
        else:
            raise CheckpointError(_unknown(leaf, self.name))

    def _append(self, layer: Layer) -> None:
        if layer != Activate("linear"):
            self.layers.append(layer)

    def _average(self, leaf: Leaf, config: dict[str, Any]) -> None:
        """Adds pooling by parts that fill the map: it is adaptive averaging to their number."""
        pool = tuple(config.get("pool_size") or (2, 2))
        strides = tuple(config.get("strides") or pool)
        if (
            strides != pool
            or len(pool) != 2
            or any(side % part for side, part in zip(self.map, pool, strict=True))
        ):
            raise CheckpointError(_unknown(leaf, self.name))
        self.map = self.map[0] // pool[0], self.map[1] // pool[1]
        self._append(Adapt(self.map))

    def _dense(self, leaf: Leaf, config: dict[str, Any]) -> None:
        if (
            self.flat is not None
            and 0 in leaf.arrays
            and leaf.arrays[0].shape[0] != self.width * math.prod(self.flat)
        ):
            raise CheckpointError(
                f"the head of '{self.name}' takes {leaf.arrays[0].shape[0]} values and a map of "
                f"{self.flat[0]}x{self.flat[1]} gives others; give the size that it "
                "was trained for with ?image_size=HEIGHTxWIDTH"
            )
        weight = dense(leaf.arrays, self.name, self.flat)
        self.flat = None
        number = self._number()
        self._append(Linear(number, weight.shape[1], weight.shape[0], bias=1 in leaf.arrays))
        self.tensors[f"classifier.{number}.weight"] = weight
        if 1 in leaf.arrays:
            self.tensors[f"classifier.{number}.bias"] = torch.from_numpy(leaf.arrays[1])
        self._append(_named_activation(config.get("activation"), leaf, self.name))

    def _norm(self, leaf: Leaf, config: dict[str, Any]) -> None:
        arrays = dict(leaf.arrays)
        if not (config.get("scale", True) and config.get("center", True)) or len(arrays) != 4:
            raise CheckpointError(_unknown(leaf, self.name))
        number, width = self._number(), len(arrays[0])
        self._append(Norm(number, width, float(config.get("epsilon", 1e-3))))
        for index, part in enumerate(("weight", "bias", "running_mean", "running_var")):
            array = arrays[index]
            if self.flat is not None:
                height, across = self.flat
                array = np.ascontiguousarray(array.reshape(height, across, -1).transpose(2, 0, 1).reshape(-1))
            self.tensors[f"classifier.{number}.{part}"] = torch.from_numpy(array)
        self.tensors[f"classifier.{number}.num_batches_tracked"] = torch.zeros((), dtype=torch.long)

    def _number(self) -> str:
        self.number += 1
        return str(self.number - 1)

    def finish(self, wanted: str | None) -> KerasHead:
        """Returns the head without its last activation, which (or the operator's) turns logits into scores."""
        last = self.layers.pop() if isinstance(self.layers[-1], Activate) else Activate("linear")
        if wanted is not None:
            last = _ACTIVATIONS[wanted]
        if not isinstance(last, Activate) or last.by not in ("softmax", "sigmoid", "linear"):
            raise CheckpointError(
                f"the head of '{self.name}' ends in {last.by if isinstance(last, Activate) else last.kind}, which "
                "cannot be served; softmax, sigmoid or none can"
            )
        one = next((layer.outputs for layer in reversed(self.layers) if isinstance(layer, Linear)), 0) == 1
        return KerasHead(
            tuple(self.layers), self.tensors, "sigmoid" if last.by == "sigmoid" or one else "softmax"
        )


def _map_size(configuration: Configuration, size: Size) -> Size:
    """Returns height and width of the backbone's map. In a padded DenseNet only the stem's halvings round up."""
    if configuration.family == "vgg":
        return configuration.map_size(size)
    sides = []
    for side in size:
        side = -(-side // 2)
        side = -(-side // 2)
        sides.append(side >> (len(configuration.blocks) - 1))
    return sides[0], sides[1]


def _activation(leaf: Leaf, config: dict[str, Any]) -> Activate | None:
    match leaf.kind:
        case "Activation":
            return _ACTIVATIONS.get(_name_of(config.get("activation")))
        case "ReLU":
            plain = not config.get("negative_slope") and not config.get("threshold")
            limit = config.get("max_value")
            return (
                (Activate() if limit is None else Activate("relu6") if limit == 6 else None)
                if plain
                else None
            )
        case "LeakyReLU":
            return Activate("leaky_relu", slope=float(config.get("negative_slope", config.get("alpha", 0.3))))
        case "ELU":
            return Activate("elu", slope=float(config.get("alpha", 1.0)))
        case "Softmax":
            return Activate("softmax")
    return None


def _named_activation(value: Any, leaf: Leaf, name: str) -> Activate:
    found = _ACTIVATIONS.get(_name_of(value))
    if found is None:
        raise CheckpointError(
            f"the layer '{leaf.name}' of '{name}' ends in '{_name_of(value)}', which cannot be served; "
            f"{', '.join(_ACTIVATIONS)} can"
        )
    return found


def _name_of(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("config") if isinstance(value.get("config"), str) else value.get("class_name")
    return str(value or "linear").lower()
