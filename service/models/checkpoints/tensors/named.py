"""Renames a VGG with unusual names to torchvision's names, by the order of its convolutions.

    conv1_1, conv1_2, conv2_1, ...        Caffe's names, and those of files that came from there
    block1.0, block1.2, block2.0, ...     one block a stage
    features.0.conv, features.1.conv      one module a layer

A max-pool follows every block. Where each convolution is a block of its own, the pools follow from the widths, if
these are one of torchvision's four depths.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from service.models.catalog import VARIANTS
from service.models.checkpoints.tensors.search import Flat, natural
from service.models.configuration import VGGConfig

_MAX_CHANNELS = 16
_USUAL = re.compile(r"(?:.*\.)?\d+\.weight")
_GROUP = re.compile(r"(.*?\d+)[._-]?(?:conv(?:olution)?)?[._-]?\d*")


def with_usual_names(flat: Flat) -> Flat:
    """Returns ``flat`` with its one VGG renamed; unchanged if there is none or it has the usual names."""
    kernels = {key: tensor for key, tensor in flat.items() if key.endswith(".weight") and tensor.ndim == 4}
    roots = {key.removesuffix("weight").rpartition(".")[0].rpartition(".")[0] for key in kernels}
    if len(kernels) < 2 or (len(roots) == 1 and all(_USUAL.fullmatch(key) for key in kernels)):
        return flat
    order = next(
        (order for order in (sorted(kernels, key=natural), [*kernels]) if _follow(kernels, order)), None
    )
    if order is None:
        return flat
    names = [key.removesuffix(".weight") for key in order]
    scope = _common_prefix(names)
    widths = [len(kernels[key]) for key in order]
    stages = _stages([name.removeprefix(scope) for name in names], widths)
    norms = _norms(flat, scope, widths)
    if stages is None or norms is None:
        return flat
    return _renamed(flat, scope, names, norms, stages)


def _follow(kernels: Flat, order: Sequence[str]) -> bool:
    """Returns True if these are 3x3 convolutions, the first on an image, each on the output of the one before."""
    shapes = [tuple(kernels[key].shape) for key in order]
    return (
        all(shape[2:] == (3, 3) for shape in shapes)
        and shapes[0][1] <= _MAX_CHANNELS
        and all(second[1] == first[0] for first, second in itertools.pairwise(shapes))
    )


def _common_prefix(names: Sequence[str]) -> str:
    parts = [name.split(".")[:-1] for name in names]
    shared = itertools.takewhile(lambda level: len({*level}) == 1, zip(*parts, strict=False))
    return "".join(f"{level[0]}." for level in shared)


def _stages(names: Sequence[str], widths: Sequence[int]) -> list[int] | None:
    """Returns the number of convolutions of each stage; None if the names do not tell."""
    published = _published(widths)
    if published is not None:
        return published
    groups = [(match[1] if (match := _GROUP.fullmatch(name)) else name) for name in names]
    counts = [len([*members]) for _, members in itertools.groupby(groups)]
    return counts if len(set(groups)) == len(counts) and max(counts) > 1 else None


def _published(widths: Sequence[int]) -> list[int] | None:
    for variant in VARIANTS.values():
        if isinstance(variant.configuration, VGGConfig):
            stages = variant.configuration.stages
            if [width for stage in stages for width in stage] == [*widths]:
                return [len(stage) for stage in stages]
    return None


def _norms(flat: Flat, scope: str, widths: Sequence[int]) -> list[str] | None:
    """Returns the names of the convolutions' batch norms, in order: one each, or none; None if the norms do not fit."""
    found = [
        key.removesuffix(".running_mean")
        for key in sorted(flat, key=natural)
        if key.startswith(scope) and key.endswith(".running_mean")
    ]
    if [len(flat[f"{name}.running_mean"]) for name in found[: len(widths)]] == [*widths]:
        return found[: len(widths)]
    return [] if not found else None


def _renamed(
    flat: Flat, scope: str, names: Sequence[str], norms: Sequence[str], stages: Sequence[int]
) -> Flat:
    """Renames by torchvision's numbers: each convolution, norm, ReLU and pool takes one."""
    places: dict[str, int] = {}
    place, layer = 0, iter(range(len(names)))
    for count in stages:
        for number in itertools.islice(layer, count):
            places[names[number]] = place
            if norms:
                places[norms[number]] = place + 1
            place += 3 if norms else 2
        place += 1
    renamed: Flat = {}
    for key, tensor in flat.items():
        name, _, part = key.rpartition(".")
        renamed[f"{scope}features.{places[name]}.{part}" if name in places else key] = tensor
    return renamed
