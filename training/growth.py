"""Grows a DenseNet: puts its weights into one with more layers in the last block, with the same answers at first."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

#: Weights that read the last block. Only these may be wider: elsewhere new channels would come between old ones.
_READS_THE_LAST_BLOCK = ("features.norm5.", "classifier.weight")


def grown(weights: Mapping[str, Tensor], network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns ``network``'s state dict with ``weights`` in it, whose layers are the first ones of every block.

    A new layer's channels follow the old ones. Weights that read them are zero, and batch norms keep their initial
    values there. Raises `ValueError` for weights of another kind of network.
    """
    strangers = set(weights).difference(network)
    if strangers:
        raise ValueError(f"the network has no {', '.join(sorted(strangers))}")
    return {name: _placed(name, weights.get(name), initial) for name, initial in network.items()}


def _placed(name: str, weight: Tensor | None, initial: Tensor) -> Tensor:
    if weight is None:
        return initial.clone()
    if weight.shape == initial.shape:
        return weight.to(initial.dtype)
    wider = all(old <= new for old, new in zip(weight.shape, initial.shape, strict=True))
    if not name.startswith(_READS_THE_LAST_BLOCK) or not wider:
        raise ValueError(f"{name} is {tuple(weight.shape)} and does not fit into {tuple(initial.shape)}")
    placed = torch.zeros_like(initial) if initial.ndim > 1 else initial.clone()
    placed[tuple(slice(size) for size in weight.shape)] = weight.to(initial.dtype)
    return placed
