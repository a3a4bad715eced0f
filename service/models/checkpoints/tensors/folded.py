"""Joins weights that a file keeps in parts, as torch does in evaluation.

X.weight_g, X.weight_v                                    ``nn.utils.weight_norm``
X.weight_orig, X.weight_mask                              ``nn.utils.prune``
X.weight_orig, X.weight_u, X.weight_v                     ``nn.utils.spectral_norm``
X.parametrizations.weight.original0, .original1           ``nn.utils.parametrizations.weight_norm``
X.parametrizations.weight.original, .0._u, .0._v          ``nn.utils.parametrizations.spectral_norm``
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from service.errors import CheckpointError

Flat = dict[str, Tensor]

_IN_PARTS = re.compile(r"((?:.*\.)?)(\w+?)(?:_g|_orig|\.original0?)")


def whole(flat: Flat, name: str) -> Flat:
    """Returns ``flat`` with every weight in one piece. Raises `CheckpointError` for an unknown parametrisation."""
    result: Flat = {}
    taken: set[str] = set()
    for key in flat:
        match = _IN_PARTS.fullmatch(key)
        parts = _parts(flat, key, match) if match else None
        if match and parts:
            found, make = parts
            result[_stem(match)] = _made(make, [flat[part].float() for part in found], key, name)
            taken |= {*found}
        elif ".parametrizations." in f".{key}" and key.endswith(".original"):
            raise CheckpointError(
                f"'{name}' holds '{key}' of a parametrisation that is not known here; save the state dict again after "
                "torch.nn.utils.parametrize.remove_parametrizations"
            )
        else:
            result.setdefault(key, flat[key])
    return {key: tensor for key, tensor in result.items() if key not in taken}


def _stem(match: re.Match[str]) -> str:
    return match[1].removesuffix("parametrizations.") + match[2]


def _parts(flat: Flat, key: str, match: re.Match[str]) -> tuple[list[str], Callable[..., Tensor]] | None:
    """Returns all parts of the weight that ``key`` belongs to, and the function that joins them; None for a plain
    weight."""
    stem = _stem(match)
    inner = key.removesuffix(".original")
    ways: list[tuple[str, list[str], Callable[..., Tensor]]] = [
        ("_g", [f"{stem}_v"], _weight_norm),
        (".original0", [key.removesuffix("0") + "1"], _weight_norm),
        ("_orig", [f"{stem}_mask"], torch.mul),
        ("_orig", [f"{stem}_u", f"{stem}_v"], _spectral_norm),
        (".original", [f"{inner}.0._u", f"{inner}.0._v"], _spectral_norm),
    ]
    for ending, others, make in ways:
        if key.endswith(ending) and all(other in flat for other in others):
            return [key, *others], make
    return None


def _made(make: Callable[..., Tensor], parts: list[Tensor], key: str, name: str) -> Tensor:
    try:
        return make(*parts)
    except (RuntimeError, IndexError) as error:
        raise CheckpointError(
            f"'{name}' holds '{key}' and parts that do not fit it; give a whole checkpoint"
        ) from error


def _weight_norm(length: Tensor, direction: Tensor) -> Tensor:
    """Scales each slice of ``direction`` to its ``length`` (``torch._weight_norm``, any dim)."""
    sizes = [*length.shape] + [1] * (direction.ndim - length.ndim)
    axes = [axis for axis, size in enumerate(sizes) if size == 1]
    own: Tensor = torch.linalg.vector_norm(direction, dim=axes, keepdim=True)
    return direction * (length.view(sizes) / own)


def _spectral_norm(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    largest: Tensor = torch.dot(left, weight.flatten(1) @ right)
    return weight / largest
