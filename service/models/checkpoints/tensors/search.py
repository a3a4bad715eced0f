"""The networks among the values of a file, found by their structure and not by what somebody called them.

Everything is laid out flat first: ``{"net": {"features": ...}}`` and ``{"net.features": ...}`` are the same. Then a
network is where the layers of a VGG or a DenseNet lie: a *root*, such as ``state_dict.module.features.``.

    state_dict . module . features . denseblock1.denselayer1.conv1.weight
    └──────── scope ────┘
    └────────────── root ──────────┘
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Flat = dict[str, Tensor]

#: Deeper or longer than anybody nests weights.
_DEEPEST, _LONGEST = 32, 10_000

_DENSENET = re.compile(r"(?P<root>|.*?\.)denseblock1\.denselayer1\.conv\.?1\.weight")
_NUMBERED_DENSENET = re.compile(r"(?P<root>|.*?\.)(?P<number>\d+)\.denselayer1\.conv\.?1\.weight")
_NUMBERED = re.compile(r"(?P<root>|.*?\.)(?P<number>\d+)\.weight")

#: More channels than this is no picture, so no first layer.
_MOST_CHANNELS = 16

#: Words in the name of weights that were averaged over the training.
_AVERAGE = re.compile(r"(^|[._-])(ema|swa|average[sd]?|avg|shadow)([._-]|\d|$)|ema_?model|averaged", re.I)


@dataclass(frozen=True)
class Found:
    """A network among other things: where its layers begin, and what it is called by that."""

    root: str

    @property
    def scope(self) -> str:
        """What its head's names begin with, too."""
        parts = self.root.split(".")[:-1]
        while parts and ((parts[-1] == "module" and "features" in parts) or parts[-1].isdecimal()):
            parts.pop()
        if parts and parts[-1] == "features":
            parts.pop()
        return "".join(f"{part}." for part in parts)

    @property
    def name(self) -> str:
        return (self.scope or self.root).rstrip(".")

    def called(self, key: str) -> bool:
        """Whether an operator means this one by ``key``: its name, or one of the names on the way to it."""
        return f".{key}." in f".{self.name}."


#: What ``torch.compile``, FSDP, activation checkpoints and their like put between a module's name and its layers'.
_SHELLS = re.compile(
    r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)


def flatten(values: Any) -> Flat:
    """Every plain tensor and float array in nested mappings and lists, by its path without the shells of modules."""
    flat: Flat = {}
    for key, value in _walk(values, "", set(), 0):
        tensor = _tensor(value)
        if tensor is not None:
            flat.setdefault(_SHELLS.sub("", key), tensor)
    return flat


def is_quantised(values: Any) -> bool:
    """Whether torch has quantised some of these weights: they are whole numbers then, with a scale."""
    return any(
        "_packed_params" in key or (isinstance(value, Tensor) and value.is_quantized)
        for key, value in _walk(values, "", set(), 0)
    )


def module_of(values: Any, found: Found) -> str:
    """What the names begin with that lie in one state dict with the network's: all of them are of one module."""
    mappings: set[str] = set()
    _mappings(values, "", mappings, 0)
    fitting = [path for path in mappings if found.root.startswith(path)]
    return max(fitting, key=len, default="")


def _mappings(value: Any, path: str, found: set[str], depth: int) -> None:
    if not isinstance(value, Mapping | list | tuple) or depth > _DEEPEST or len(value) > _LONGEST:
        return
    for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
        if isinstance(item, Tensor | np.ndarray):
            found.add(_SHELLS.sub("", path))
        else:
            _mappings(item, f"{path}{key}.", found, depth + 1)


def _walk(value: Any, path: str, above: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Tensor | np.ndarray):
        yield path, value
        return
    if not isinstance(value, Mapping | list | tuple) or id(value) in above or depth > _DEEPEST:
        return
    if len(value) > _LONGEST:
        return
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, item in pairs:
        yield from _walk(item, f"{path}.{key}" if path else str(key), above | {id(value)}, depth + 1)


def _tensor(value: Tensor | np.ndarray[Any, Any]) -> Tensor | None:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiub" or value.dtype.hasobject:
            return None
        value = torch.from_numpy(value.astype(value.dtype.newbyteorder("="), copy=True))
    plain = value.layout == torch.strided and not value.is_quantized and value.device.type == "cpu"
    return value.detach() if plain else None


def networks(flat: Flat) -> list[Found]:
    """Every network in the file, in its order."""
    roots: dict[str, None] = {}
    for key, tensor in flat.items():
        match = _DENSENET.fullmatch(key) or _NUMBERED_DENSENET.fullmatch(key)
        if match and tensor.ndim == 4:
            roots.setdefault(match["root"])
    for root, layers in _numbered(flat).items():
        if _is_vgg(layers) and not any(root.startswith(other) for other in roots):
            roots.setdefault(root)
    return [Found(root) for root in roots]


def _numbered(flat: Flat) -> dict[str, dict[int, Tensor]]:
    found: dict[str, dict[int, Tensor]] = {}
    for key, tensor in flat.items():
        match = _NUMBERED.fullmatch(key)
        if match and tensor.ndim == 4:
            found.setdefault(match["root"], {})[int(match["number"])] = tensor
    return found


def _is_vgg(layers: Mapping[int, Tensor]) -> bool:
    """Whether these are 3x3 convolutions that follow each other and begin at a picture."""
    channels = None
    for _, weight in sorted(layers.items()):
        outputs, inputs, *kernel = weight.shape
        if (
            kernel != [3, 3]
            or (inputs > _MOST_CHANNELS and channels is None)
            or channels not in (None, inputs)
        ):
            return False
        channels = outputs
    return len(layers) > 1


def is_average(flat: Flat, found: Found) -> bool:
    """Whether its name, or a counter beside it, says that it is an average of the weights of many steps."""
    if _AVERAGE.search(found.name):
        return True
    parts = found.scope.split(".")[:-1]
    return any(".".join([*parts[:end], "n_averaged"]) in flat for end in range(len(parts) + 1))


def features(flat: Flat, found: Found) -> Flat:
    """The tensors of the network without its head, under torchvision's names."""
    return {name: flat[key] for key, name in layers(flat, found).items()}


def layers(flat: Flat, found: Found) -> dict[str, str]:
    """What ``flat`` calls each of these tensors, to torchvision's name."""
    begins = len(found.root)
    inner = {key[begins:]: value for key, value in flat.items() if key.startswith(found.root)}
    names = {key: key for key in inner}
    if any(re.match(r"\d+\.denselayer1\.", key) for key in inner):
        names = _names(inner)
    named = {name: inner[key] for key, name in names.items()}
    return {found.root + key: f"features.{name}" for key, name in names.items() if _is_body(name, named)}


_BODY = re.compile(r"(\d+|conv\d|norm\d|denseblock\d+|transition\d+)\..*")


def _is_body(key: str, inner: Flat) -> bool:
    """With an empty root, the head lies among the layers; a VGG's then is no convolution."""
    match = _BODY.fullmatch(key)
    weight = inner.get(key.rpartition(".")[0] + ".weight")
    return match is not None and (weight is None or weight.ndim != 2)


def _names(inner: Flat) -> dict[str, str]:
    """``nn.Sequential(*densenet.features.children())`` has lost the names of the layers, and not their order."""
    first = min(int(key.partition(".")[0]) for key in inner if re.match(r"\d+\.denselayer1\.", key))
    kinds: dict[int, str] = {}
    for key, value in inner.items():
        number, _, rest = key.partition(".")
        if number.isdecimal():
            kinds.setdefault(int(number), _kind(int(number), rest, value, first))
    counts: dict[str, int] = {}
    places: dict[str, str] = {}
    for place, kind in sorted(kinds.items()):
        counts[kind] = counts.get(kind, 0) + 1
        places[str(place)] = kind if kind in ("conv0", "norm0", "norm5", "") else f"{kind}{counts[kind]}"
    names: dict[str, str] = {}
    for key in inner:
        number, _, rest = key.partition(".")
        if places.get(number):
            names[key] = f"{places[number]}.{rest}"
    return names


def _kind(number: int, rest: str, value: Tensor, first: int) -> str:
    if rest.startswith("denselayer"):
        return "denseblock"
    if rest.startswith(("norm.", "conv.")):
        return "transition"
    if number < first:
        return "conv0" if value.ndim == 4 else "norm0"
    return "norm5" if value.ndim <= 1 and "." not in rest else ""
