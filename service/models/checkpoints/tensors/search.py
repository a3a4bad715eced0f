"""Finds the networks among the values of a file by their structure, whatever their names.

First all values are flattened: ``{"net": {"features": ...}}`` and ``{"net.features": ...}`` become the same. A
network then is a *root*, the prefix of the layers of a VGG or a DenseNet, such as ``state_dict.module.features.``.

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

#: Limits of the walk: deeper nesting and longer lists hold no weights.
_MAX_DEPTH, _MAX_LENGTH = 32, 10_000

_DENSENET = re.compile(r"(?P<root>|.*?\.)denseblock1\.denselayer1\.conv\.?1\.weight")
_NUMBERED_DENSENET = re.compile(r"(?P<root>|.*?\.)(?P<number>\d+)\.denselayer1\.conv\.?1\.weight")
_NUMBERED = re.compile(r"(?P<root>|.*?\.)(?P<number>\d+)\.weight")

#: Most input channels of a first layer; more are no image.
_MAX_CHANNELS = 16

#: Words in the names of weights that were averaged over the training.
_AVERAGE = re.compile(r"(^|[._-])(ema|swa|average[sd]?|avg|shadow)([._-]|\d|$)|ema_?model|averaged", re.I)


@dataclass(frozen=True)
class Found:
    """A network among the values; ``root`` is the prefix of its layers' names."""

    root: str

    @property
    def scope(self) -> str:
        """The prefix of the whole network's names, its head included."""
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
        """Returns True if an operator's ``key`` means this network: its name, or a dotted part of it."""
        return f".{key}." in f".{self.name}."


#: Names that ``torch.compile``, FSDP, activation checkpoints and the like put before a module's layers.
_SHELLS = re.compile(
    r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)


def flatten(values: Any) -> Flat:
    """Returns every plain tensor and float array in nested mappings and lists, by its path without such names."""
    flat: Flat = {}
    for key, value in _walk(values, "", set(), 0):
        tensor = _tensor(value)
        if tensor is not None:
            flat.setdefault(_SHELLS.sub("", key), tensor)
    return flat


def is_quantised(values: Any) -> bool:
    """Returns True if torch has quantised some of these weights: they then are integers with a scale."""
    return any(
        "_packed_params" in key or (isinstance(value, Tensor) and value.is_quantized)
        for key, value in _walk(values, "", set(), 0)
    )


def module_of(values: Any, found: Found) -> str:
    """Returns the prefix of the state dict that the network is in: all names under it are of one module."""
    mappings: set[str] = set()
    _mappings(values, "", mappings, 0)
    fitting = [path for path in mappings if found.root.startswith(path)]
    return max(fitting, key=len, default="")


def _mappings(value: Any, path: str, found: set[str], depth: int) -> None:
    if not isinstance(value, Mapping | list | tuple) or depth > _MAX_DEPTH or len(value) > _MAX_LENGTH:
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
    if not isinstance(value, Mapping | list | tuple) or id(value) in above or depth > _MAX_DEPTH:
        return
    if len(value) > _MAX_LENGTH:
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
    """Returns every network in the file, in its order."""
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
    """Returns True if these are 3x3 convolutions that follow each other, the first on an image."""
    channels = None
    for _, weight in sorted(layers.items()):
        outputs, inputs, *kernel = weight.shape
        if (
            kernel != [3, 3]
            or (inputs > _MAX_CHANNELS and channels is None)
            or channels not in (None, inputs)
        ):
            return False
        channels = outputs
    return len(layers) > 1


def is_average(flat: Flat, found: Found) -> bool:
    """Returns True if the network's name, or a counter beside it, tells that its weights are an average of many
    steps."""
    if _AVERAGE.search(found.name):
        return True
    parts = found.scope.split(".")[:-1]
    return any(".".join([*parts[:end], "n_averaged"]) in flat for end in range(len(parts) + 1))


def features(flat: Flat, found: Found) -> Flat:
    """Returns the tensors of the network without its head, under torchvision's names."""
    return {name: flat[key] for key, name in layers(flat, found).items()}


def layers(flat: Flat, found: Found) -> dict[str, str]:
    """Returns torchvision's name of each of these tensors, by its key in ``flat``."""
    begins = len(found.root)
    inner = {key[begins:]: value for key, value in flat.items() if key.startswith(found.root)}
    names = {key: key for key in inner}
    if any(re.match(r"\d+\.denselayer1\.", key) for key in inner):
        names = _names(inner)
    named = {name: inner[key] for key, name in names.items()}
    return {found.root + key: f"features.{name}" for key, name in names.items() if _is_body(name, named)}


_BODY = re.compile(r"(\d+|conv\d|norm\d|denseblock\d+|transition\d+)\..*")


def _is_body(key: str, inner: Flat) -> bool:
    """Returns True for a key of the backbone. With an empty root the head lies among the layers; a VGG's is 2-d."""
    match = _BODY.fullmatch(key)
    weight = inner.get(key.rpartition(".")[0] + ".weight")
    return match is not None and (weight is None or weight.ndim != 2)


def _names(inner: Flat) -> dict[str, str]:
    """Names the layers of ``nn.Sequential(*densenet.features.children())`` by their order, which survives."""
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


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key of a layer's name: its numbers count as numbers, so 2 comes before 10."""
    parts = [part for part in re.split(r"(\d+)|[._]", name) if part]
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
