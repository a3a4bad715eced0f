"""A network's head as data: a list of layers, no tensor, no torch.

    float [N, C, h, w] ─ layer ─ layer ─ … ─▶ logits, float [N, classes]

`service.models.named_heads.layers_of` returns the list for every configuration. A layer's name is a number or empty;
its arrays lie in the network's state dict under ``classifier.<name>.`` or, for an empty name, under ``classifier.``.
A `Linear` and a `Convolution` have ``weight`` ``[outputs, inputs]`` (a kernel is flattened: channel, height, width)
and, with ``bias``, a ``bias`` ``[outputs]``. A `Norm` has ``weight``, ``bias``, ``running_mean`` and ``running_var``,
all ``[width]``. `service.models.heads` computes the list with torch, `service.models.gradients` with NumPy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, get_args

from service.errors import CheckpointError

#: Side of the kernel that a VGG's first dense layer is, and of the map that torchvision's head averages to.
KERNEL = 7

#: Ways to pool a map of any size into a vector: mean or largest value of each channel, the mean of the two, or both
#: concatenated (mean first in timm's ``catavgmax``, largest first in fastai's ``catmaxavg``).
Pooling = Literal["avg", "max", "avgmax", "catavgmax", "catmaxavg"]

#: Nonlinearities between two layers. ``softmax`` is over the channels; the others act on each value alone.
Nonlinearity = Literal[
    "linear", "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "gelu_tanh", "silu", "hard_swish", "mish",
    "softplus", "sigmoid", "tanh", "softmax",
]  # fmt: skip

_MAX_LAYERS = 64
_MAX_WIDTH = 1 << 26

#: Names as `torch.nn.Sequential` numbers its modules.
_NAME = re.compile(r"\d{1,4}")


@dataclass(frozen=True)
class Adapt:
    """Adaptive averaging of a map to ``size`` (height, width); with ``enlarge`` only along sides that are shorter."""

    kind: ClassVar[str] = "adapt"
    size: tuple[int, int]
    enlarge: bool = False


@dataclass(frozen=True)
class Pool:
    """Global pooling of a map to a vector."""

    kind: ClassVar[str] = "pool"
    by: Pooling = "avg"


@dataclass(frozen=True)
class Flatten:
    """A map flattened to a vector: channel, height, width."""

    kind: ClassVar[str] = "flatten"


@dataclass(frozen=True)
class Linear:
    kind: ClassVar[str] = "linear"
    name: str
    inputs: int
    outputs: int
    bias: bool = True


@dataclass(frozen=True)
class Convolution:
    """A dense layer that slides over a map as a ``kernel`` x ``kernel`` convolution of stride 1."""

    kind: ClassVar[str] = "convolution"
    name: str
    inputs: int
    """Number of values under the kernel: channels x kernel x kernel."""
    outputs: int
    kernel: int
    padding: int = 0
    bias: bool = True


@dataclass(frozen=True)
class Norm:
    """A batch norm of a vector by training's statistics: ``(x - mean) / sqrt(var + epsilon) * weight + bias``."""

    kind: ClassVar[str] = "norm"
    name: str
    width: int
    epsilon: float = 1e-5


@dataclass(frozen=True)
class Activate:
    """A nonlinearity. ``slope`` is that of ``leaky_relu`` and ``elu`` for negative values."""

    kind: ClassVar[str] = "activate"
    by: Nonlinearity = "relu"
    slope: float = 0.01


Layer = Adapt | Pool | Flatten | Linear | Convolution | Norm | Activate

#: Layers that have arrays.
Weighted = Linear | Convolution | Norm

_KINDS: Mapping[str, type[Any]] = {kind.kind: kind for kind in get_args(Layer)}


def key(layer: Weighted) -> str:
    """Returns the prefix of a layer's array names: ``classifier.`` or ``classifier.<name>.``."""
    return f"classifier.{layer.name}." if layer.name else "classifier."


def to_json(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """Returns the layers as plain JSON values, from which `from_json` makes equal layers."""
    return [{"layer": layer.kind, **asdict(layer)} for layer in layers]


def from_json(documents: Any) -> tuple[Layer, ...]:
    """Reads layers that `to_json` wrote. Raises `CheckpointError` for anything else."""
    if not isinstance(documents, list | tuple):
        raise CheckpointError("the configuration's layers must be a list")
    return tuple(_layer(document) for document in documents)


def _layer(document: Any) -> Layer:
    values = dict(document) if isinstance(document, dict) else {}
    kind = _KINDS.get(str(values.pop("layer", None)))
    if kind is None:
        raise CheckpointError(f"each of the configuration's layers is one of {', '.join(_KINDS)}")
    try:
        layer: Layer = kind(**{name: _tuple(value) for name, value in values.items()})
    except TypeError as error:
        raise CheckpointError(f"the configuration's layer {kind.kind} is invalid: {error}") from error
    return layer


def check(layers: Sequence[Layer], width: int, classes: int) -> None:
    """Raises `CheckpointError` unless the layers fit each other, ``width`` input channels and ``classes``."""
    if len(layers) > _MAX_LAYERS:
        raise CheckpointError(f"a head has at most {_MAX_LAYERS} layers")
    if len(names := [layer.name for layer in layers if isinstance(layer, Weighted)]) != len(set(names)):
        raise CheckpointError("two of the head's layers have the same name")
    current: int | None = width
    vector = False
    for layer in layers:
        _check_values(layer)
        if isinstance(layer, Adapt | Pool | Flatten | Convolution) and vector:
            raise CheckpointError(f"the head's layer {layer.kind} needs a map and gets a vector")
        if isinstance(layer, Linear | Norm) and not vector:
            raise CheckpointError(f"the head's layer {layer.kind} needs a vector; pool or flatten before it")
        current, vector = _after(layer, current, vector)
    if not vector or current != classes:
        raise CheckpointError(f"the head ends in {current} values and the network has {classes} classes")


def _after(layer: Layer, current: int | None, vector: bool) -> tuple[int | None, bool]:
    """Returns the channels after a layer (None where only the image's size would tell), and whether it gives a
    vector."""
    match layer:
        case Pool():
            return (None if current is None else current * (2 if layer.by.startswith("cat") else 1)), True
        case Flatten():
            return None, True
        case Linear():
            _refuse_gap(layer.name, current, layer.inputs)
            return layer.outputs, True
        case Convolution():
            _refuse_gap(layer.name, current and current * layer.kernel**2, layer.inputs)
            return layer.outputs, False
        case Norm():
            _refuse_gap(layer.name, current, layer.width)
            return layer.width, True
    return current, vector


def _refuse_gap(name: str, current: int | None, wanted: int) -> None:
    if current not in (None, wanted):
        raise CheckpointError(f"the head's layer '{name}' takes {wanted} values and gets {current}")


def _check_values(layer: Layer) -> None:
    for field in fields(layer):
        value = getattr(layer, field.name)
        if field.name == "size":
            good = isinstance(value, tuple) and len(value) == 2 and all(_is_count(side) for side in value)
        elif field.name == "name":
            good = isinstance(value, str) and _NAME.fullmatch(value) is not None
        elif field.name == "by":
            good = value in get_args(Pooling if isinstance(layer, Pool) else Nonlinearity)
        elif field.name in ("bias", "enlarge"):
            good = isinstance(value, bool)
        elif field.name in ("epsilon", "slope"):
            good = isinstance(value, int | float) and 0 <= value < float("inf")
        else:
            good = _is_count(value) or (field.name == "padding" and value == 0)
        if not good:
            raise CheckpointError(f"the head's layer {layer.kind} cannot have {field.name} {value!r:.80}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _MAX_WIDTH


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
