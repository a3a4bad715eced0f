"""Reads a head from its tensors: layers that fit each other, from the features' channels to the classes.

    classifier.0.weight [24, 1024]                          classifier.3.weight [7, 24]
    classifier.0.bias   [24]         (.1 and .2: nothing)   classifier.3.bias   [7]

A state dict says nothing of layers without tensors. These rules, which docs/MODELS.md explains to users, fill them
in:

- Between two dense layers with a number free between them, or whose names are no numbers, stands a ReLU; where a
  batch norm is between them as well, at the first free number, or right behind the norm where there are no numbers.
- Layers with neighbouring numbers have nothing between them.
- The first layer's inputs tell how the map becomes a vector: C values by the mean of each channel, C x k x k by
  adaptive averaging to k x k. 2C may be two things, so the operator says which.
- The last layer gives logits, whether or not a softmax followed it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor

from service.errors import CheckpointError
from service.models.checkpoints.tensors.search import natural
from service.models.head import Activate, Adapt, Flatten, Layer, Linear, Nonlinearity, Norm, Pool, Pooling
from service.models.options import Options

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

#: Most layers of a head without an order that are tried in every order.
_MAX_UNORDERED = 7


@dataclass
class Stored:
    """The tensors of one layer, and its name."""

    name: str
    parts: dict[str, Tensor] = field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        """The names of its tensors."""
        return [f"{self.name}.{part}" if self.name else part for part in self.parts]

    @property
    def is_linear(self) -> bool:
        return {"weight"} <= {*self.parts} <= {"weight", "bias"} and self.parts["weight"].ndim == 2

    @property
    def is_norm(self) -> bool:
        return {"running_mean"} <= {*self.parts} <= {*_NORM} and self.parts["running_mean"].ndim == 1

    @property
    def inputs(self) -> int:
        return self.parts["weight"].shape[1] if self.is_linear else len(self.parts["running_mean"])

    @property
    def outputs(self) -> int:
        return self.parts["weight"].shape[0] if self.is_linear else len(self.parts["running_mean"])

    @property
    def place(self) -> tuple[str, int] | None:
        """The name of the sequence that the layer is in, and its number there; None without a number."""
        parent, _, last = self.name.rpartition(".")
        return (parent, int(last)) if last.isdecimal() and len(last) < 9 else None


def stored_layers(tensors: dict[str, Tensor]) -> list[Stored]:
    """Groups the tensors by layer, in the order of the file."""
    layers: dict[str, Stored] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition(".")
        layers.setdefault(name, Stored(name)).parts[part] = tensor
    return list(layers.values())


def ordered(layers: Sequence[Stored], width: int) -> list[Stored] | None:
    """Returns the order in which the layers fit each other behind ``width`` channels; None for no order, or several."""
    sequences = {layer.place[0] for layer in layers if layer.place}
    by_number = sorted(layers, key=lambda layer: natural(layer.name))
    if len(sequences) == 1 and all(layer.place for layer in layers):
        return by_number if fit(by_number, width) else None
    for order in (list(layers), by_number):
        if fit(order, width):
            return order
    if len(layers) > _MAX_UNORDERED:
        return None
    fitting = [list(order) for order in itertools.permutations(layers) if fit(order, width)]
    return fitting[0] if len(fitting) == 1 else None


def fit(layers: Sequence[Stored], width: int) -> bool:
    """Returns True if each layer takes what the one before gives, and the first what a map of ``width`` channels can
    give."""
    if not layers or not any(layer.is_linear for layer in layers):
        return False
    follows = all(second.inputs == first.outputs for first, second in itertools.pairwise(layers))
    return follows and _entries(layers[0].inputs, width) > 0


def _entries(inputs: int, width: int) -> int:
    """Returns the side of the map that has so many values; 0 if no square map has."""
    cells, rest = divmod(inputs, width)
    side = math.isqrt(cells)
    return 0 if rest or (side * side != cells and cells != 2) else max(side, 1)


def layers_of(
    stored: Sequence[Stored], width: int, options: Options, name: str
) -> tuple[tuple[Layer, ...], dict[str, Tensor]]:
    """Returns the head as data, its layers numbered, and its tensors. ``stored`` is in order.

    Raises `CheckpointError` if the operator has to say what the tensors cannot.
    """
    layers: list[Layer] = list(_entry(stored[0].inputs, width, options.pooling, name))
    tensors: dict[str, Tensor] = {}
    activated = set(_activated(stored, options.head_activation))
    for number, layer in enumerate(stored):
        layers.append(_layer(layer, str(number)))
        tensors |= {f"classifier.{number}.{part}": tensor for part, tensor in _whole(layer).items()}
        if number in activated:
            layers.append(_activation(options.head_activation))
    return tuple(layers), tensors


def _entry(inputs: int, width: int, pooling: str | None, name: str) -> Iterable[Layer]:
    if pooling is not None:
        by: Pooling = pooling  # type: ignore[assignment]
        if inputs != width * (2 if by.startswith("cat") else 1):
            raise CheckpointError(
                f"the head of '{name}' takes {inputs} values and pooling by {by} of {width} channels gives others; "
                "leave ?pooling= out or name another"
            )
        return (Pool(by),)
    if inputs == 2 * width:
        raise CheckpointError(
            f"the head of '{name}' takes {inputs} values, two for each of {width} channels, and they do not say in "
            "which order; add ?pooling=catavgmax (timm) or ?pooling=catmaxavg (fastai) to its name"
        )
    side = _entries(inputs, width)
    return (Pool(),) if side == 1 else (Adapt((side, side)), Flatten())


def _layer(layer: Stored, number: str) -> Layer:
    if layer.is_linear:
        return Linear(number, layer.inputs, layer.outputs, bias="bias" in layer.parts)
    return Norm(number, layer.outputs)


def _whole(layer: Stored) -> dict[str, Tensor]:
    """Returns the tensors, with ones and zeros for the weight and bias of a norm that stores none."""
    parts = dict(layer.parts)
    if not layer.is_linear:
        mean = parts["running_mean"]
        parts.setdefault("weight", torch.ones_like(mean))
        parts.setdefault("bias", torch.zeros_like(mean))
    return parts


def _activated(stored: Sequence[Stored], wanted: str | None) -> Iterable[int]:
    """Yields the numbers of the layers that a nonlinearity follows."""
    if wanted == "linear":
        return
    dense = [number for number, layer in enumerate(stored) if layer.is_linear]
    for start, end in itertools.pairwise(dense):
        gaps = [_gap(stored[number], stored[number + 1]) for number in range(start, end)]
        if None in gaps:
            yield end - 1
        elif free := [number for number, gap in enumerate(gaps) if gap]:
            yield start + free[0]
        elif wanted is not None:
            yield end - 1


def _gap(first: Stored, second: Stored) -> int | None:
    """Returns the number of modules without tensors between two of a sequence; None if they are of different ones."""
    if first.place is None or second.place is None or first.place[0] != second.place[0]:
        return None
    return max(0, second.place[1] - first.place[1] - 1)


def _activation(wanted: str | None) -> Activate:
    by: Nonlinearity = wanted or "relu"  # type: ignore[assignment]
    assert by in get_args(Nonlinearity)
    return Activate(by, slope=1.0) if by == "elu" else Activate(by)
