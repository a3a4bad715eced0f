"""Reads one network from the values of a file: configuration, and tensors under torchvision's names."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from service.errors import CheckpointError
from service.models.checkpoints.plain_head import with_head
from service.models.checkpoints.tensors import chain, folded, named, normalising, search, strangers
from service.models.checkpoints.tensors.chain import Stored
from service.models.checkpoints.tensors.normalising import Normalising
from service.models.checkpoints.tensors.search import Flat, Found
from service.models.checkpoints.tensors.shapes import body
from service.models.configuration import Configuration, VGGConfig
from service.models.options import Options

_log = logging.getLogger(__name__)

#: torchvision before 0.3 wrote ``denselayer1.norm.1.weight`` for ``denselayer1.norm1.weight``, and its published
#: DenseNet files still do (``torchvision.models.densenet._load_state_dict``).
_OLD_DENSENET_KEY = re.compile(
    r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var|num_batches_tracked))$"
)

#: timm's names for the head of a VGG, whose first two layers are convolutions there.
_TIMM_HEAD = {"pre_logits.fc1": "classifier.0", "pre_logits.fc2": "classifier.3", "head.fc": "classifier.6"}
_TIMMS = tuple(f"{name}." for name in _TIMM_HEAD)


@dataclass(frozen=True)
class Network:
    """A network as a file holds it."""

    configuration: Configuration
    state_dict: dict[str, Tensor]
    normalising: Normalising | None = None
    """Mean and deviation of a normalising module before the first layer, if there is one."""


def read_network(values: Any, name: str, options: Options) -> Network:
    """Returns the network in ``values``. Raises `CheckpointError` for no network, or for several without a choice."""
    if search.is_quantised(values):
        raise CheckpointError(
            f"'{name}' holds weights that torch has quantised; give the original float weights, and quantise "
            "them here, with: imagenet-serve quantize"
        )
    flat = named.with_usual_names(folded.whole(search.flatten(values), name))
    found = _chosen(flat, name, options.key)
    features = with_batch_counters(
        {_OLD_DENSENET_KEY.sub(r"\1\2", key): tensor for key, tensor in search.features(flat, found).items()}
    )
    configuration = body(features, name)
    configuration, head, taken = _head(flat, found, configuration, name, options)
    module = search.module_of(values, found)
    if options.head is None:
        strangers.refuse(flat, _untaken(flat, found, taken), module, name)
    tensors = _checked(features | with_batch_counters(head), name)
    return Network(configuration, tensors, normalising.inside(flat, module, name))


def _chosen(flat: Flat, name: str, key: str | None) -> Found:
    found = search.networks(flat)
    if not found:
        what = (
            "holds neither a VGG nor a DenseNet by its names and shapes; only these two families are served"
        )
        raise CheckpointError(
            f"'{name}' {what}" if flat else f"'{name}' holds no weights at all and so {what}"
        )
    if key is not None:
        called = [one for one in found if one.called(key)]
        if len(called) != 1:
            raise CheckpointError(
                f"'{name}' holds {len(called)} networks that are called '{key}'; there are {_names(found)}"
            )
        return called[0]
    if len(found) == 1:
        return found[0]
    averages = [one for one in found if search.is_average(flat, one)]
    raw = [one for one in found if one not in averages]
    if len(averages) == len(raw) == 1:
        taken, left = (averages[0], raw[0]) if _is_whole(flat, averages[0], raw[0]) else (raw[0], averages[0])
        what = (
            "the average of its weights"
            if taken in averages
            else "the raw weights, since the average is not whole"
        )
        _log.warning(
            "%s holds a network twice; %s is taken, '%s'. For '%s' add ?key=%s to its name",
            *(name, what, taken.name, left.name, left.name),
        )
        return taken
    raise CheckpointError(
        f"'{name}' holds {len(found)} networks: {_names(found)}; choose one by adding ?key= and its name"
    )


def _names(found: list[Found]) -> str:
    return ", ".join(f"'{one.name}'" for one in found[:8])


def _is_whole(flat: Flat, average: Found, raw: Found) -> bool:
    """Returns True if the average has every tensor of the raw network that evaluation reads."""

    def keys(found: Found) -> set[str]:
        return {key for key in search.features(flat, found) if not key.endswith("num_batches_tracked")}

    return keys(average) >= keys(raw)


def _untaken(flat: Flat, found: Found, head: set[str]) -> list[str]:
    """Returns the keys that belong neither to the network, nor to its head, nor to another network."""
    return [
        key
        for key in _beside(flat, found, [one for one in search.networks(flat) if one != found], "")
        if key not in head
    ]


def _head(
    flat: Flat, found: Found, configuration: Configuration, name: str, options: Options
) -> tuple[Configuration, Flat, set[str]]:
    """Returns the configuration with its head, the head's tensors, and their keys in ``flat``.

    Without a head, the configuration is unchanged and the others are empty.
    """
    others = [one for one in search.networks(flat) if one != found]
    scope = found.scope
    while True:
        rest = _beside(flat, found, others, scope)
        if isinstance(configuration, VGGConfig) and "pre_logits.fc1.weight" in rest:
            return *_timm_head(rest, configuration, name), {
                f"{scope}{key}" for key in rest if key.startswith(_TIMMS)
            }
        layers = chain.stored_layers(rest)
        if any(layer.is_linear for layer in layers):
            configuration, head, order = _read_head(layers, configuration, name, options)
            return configuration, head, {scope + key for layer in order for key in layer.keys}
        if not scope:
            break
        scope = "".join(f"{part}." for part in scope.split(".")[:-2])
    _refuse_what_may_be_a_head(_beside(flat, found, others, ""), name)
    _log.warning("%s holds no head: it serves features only", name)
    return configuration, {}, set()


def _beside(flat: Flat, found: Found, others: list[Found], scope: str) -> Flat:
    """Returns the tensors within ``scope`` that belong to no network's layers, under their names in it."""
    taken = search.layers(flat, found)
    return {
        key.removeprefix(scope): tensor
        for key, tensor in flat.items()
        if key.startswith(scope)
        and key not in taken
        and not any(
            key.startswith(other.scope or other.root) for other in others if other.scope != found.scope
        )
    }


def _refuse_what_may_be_a_head(rest: Flat, name: str) -> None:
    for key, tensor in rest.items():
        if re.search(r"(^|\.)classifier\.", key):
            raise CheckpointError(
                f"'{name}' holds '{key}' and no weights of a head with it; give a whole checkpoint"
            )
        if key.endswith("weight") and tensor.ndim > 1 and tensor.is_floating_point():
            raise CheckpointError(
                f"'{name}' holds '{key}' {list(tensor.shape)} behind its features, which is no head that can be read "
                "(a chain of Linear, BatchNorm1d, activations, dropout); export the model's own format instead"
            )


def _read_head(
    layers: list[Stored], configuration: Configuration, name: str, options: Options
) -> tuple[Configuration, Flat, list[Stored]]:
    width = configuration.width
    chosen = _candidates(layers, width, name, options.head)
    order = chain.ordered(chosen, width)
    if order is None:
        raise CheckpointError(_no_chain(chosen, width, name))
    if _is_cut_off(order, configuration):
        _log.warning("%s holds a head without its last layer: it serves features only", name)
        return configuration, {}, order
    stored, tensors = chain.layers_of(order, width, options, name)
    return *with_head(configuration, stored, tensors), order


def _candidates(layers: list[Stored], width: int, name: str, wanted: str | None) -> list[Stored]:
    """Returns the layers of the head. Others are left out with a warning, or refused if they may be the head."""
    groups: dict[str, list[Stored]] = {}
    for layer in layers:
        first = layer.name.partition(".")[0]
        groups.setdefault("" if first.isdecimal() else first, []).append(layer)
    if wanted is not None:
        if wanted not in groups:
            raise CheckpointError(
                f"'{name}' has no head '{wanted}'; there are {', '.join(filter(None, groups))}"
            )
        return _plain(groups[wanted], name)
    if "classifier" in groups:
        chosen = groups["classifier"]
        left = [layer for layer in layers if layer not in chosen]
    else:
        chosen = [layer for layer in layers if layer.is_linear or layer.is_norm]
        left = [layer for layer in layers if layer not in chosen]
        fitting = [group for group, members in groups.items() if chain.ordered(_readable(members), width)]
        if len(groups) > 1 and chain.ordered(chosen, width) is None and fitting:
            _refuse_several(fitting, name)
            chosen, left = (
                _readable(groups[fitting[0]]),
                [one for one in layers if one not in groups[fitting[0]]],
            )
    chosen = _plain(chosen, name)
    end = next((layer.outputs for layer in reversed(chosen) if layer.is_linear), 0)
    for layer in left:
        if layer.is_linear and layer.inputs in (width, end):
            raise CheckpointError(
                f"'{name}' holds '{layer.name}' {list(layer.parts['weight'].shape)} beside its head, and both may be "
                f"the head; say which by adding ?head={chosen[0].name.partition('.')[0]} or "
                f"?head={layer.name.partition('.')[0]}"
            )
    return chosen


def _readable(layers: list[Stored]) -> list[Stored]:
    return [layer for layer in layers if layer.is_linear or layer.is_norm]


def _plain(layers: list[Stored], name: str) -> list[Stored]:
    """Returns the layers. Raises `CheckpointError` if one is neither dense nor a batch norm of a vector."""
    for layer in layers:
        if not (layer.is_linear or layer.is_norm):
            shapes = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in layer.parts.items())
            raise CheckpointError(
                f"the head of '{name}' has a layer '{layer.name}' ({shapes}) that cannot be read; Linear, BatchNorm1d, "
                "activations and dropout can"
            )
    return layers


def _refuse_several(fitting: list[str], name: str) -> None:
    if len(fitting) > 1:
        raise CheckpointError(
            f"'{name}' holds several heads: {', '.join(fitting[:8])}; choose one by adding ?head={fitting[0]}"
        )


def _no_chain(layers: list[Stored], width: int, name: str) -> str:
    shapes = ", ".join(f"{layer.name} {layer.inputs} → {layer.outputs}" for layer in layers[:8])
    return (
        f"the head of '{name}' cannot be read: {shapes} do not follow each other in one way behind {width} channels; "
        "put the layers into one nn.Sequential and save its state dict again"
    )


def _is_cut_off(order: list[Stored], configuration: Configuration) -> bool:
    """Returns True for torchvision's ``classifier[:-1]``, the features of its second layer."""
    places = [layer.place for layer in order]
    return (
        isinstance(configuration, VGGConfig)
        and places == [("classifier", 0), ("classifier", 3)]
        and order[0].outputs == order[1].outputs == order[1].inputs
    )


def _timm_head(rest: Flat, configuration: VGGConfig, name: str) -> tuple[Configuration, Flat]:
    renamed: Flat = {}
    for key, tensor in rest.items():
        layer, _, part = key.rpartition(".")
        if layer in _TIMM_HEAD and part in ("weight", "bias"):
            renamed[f"{_TIMM_HEAD[layer]}.{part}"] = tensor.flatten(1) if part == "weight" else tensor
    configuration = replace(configuration, head="sliding")
    if "classifier.6.weight" not in renamed:
        return configuration, {}
    try:
        first, hidden, classes = (len(renamed[f"classifier.{number}.weight"]) for number in (0, 3, 6))
    except KeyError as error:
        raise CheckpointError(
            f"'{name}' lacks {error.args[0]} of its head; give a whole checkpoint"
        ) from error
    other_first = None if first == hidden else first
    return replace(configuration, num_classes=classes, hidden=hidden, hidden_first=other_first), renamed


def _checked(state_dict: Flat, name: str) -> Flat:
    for key, value in state_dict.items():
        if not value.is_floating_point() and not key.endswith("num_batches_tracked"):
            raise CheckpointError(
                f"'{name}' holds '{key}' as {value.dtype}; only float weights can be served"
            )
    return state_dict


def with_batch_counters(state_dict: Flat) -> Flat:
    """Adds batch norm's training counter where an old file lacks it; evaluation never reads it."""
    for key in [key for key in state_dict if key.endswith("running_mean")]:
        counter = key.removesuffix("running_mean") + "num_batches_tracked"
        state_dict.setdefault(counter, torch.zeros((), dtype=torch.long))
    return state_dict
