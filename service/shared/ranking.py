"""The classes of an answer, from the model's logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidParameter, NotANumber
from service.labels import ClassLabel


@dataclass(frozen=True)
class Ranking:
    """The number of classes that an answer names, and their scores: probabilities, or logits."""

    k: int
    logits: bool = False

    @classmethod
    def of(cls, classes: Sequence[ClassLabel], top_k: int | None, default: int, activation: str) -> Ranking:
        """The ranking that a request asks for. Raises `InvalidParameter` for more classes than there are."""
        if top_k is not None and top_k > len(classes):
            raise InvalidParameter(f"top_k: {top_k} is more than the model's {len(classes)} classes")
        return cls(min(top_k or default, len(classes)), activation == "none")

    def changed(self, classes: Sequence[ClassLabel], top_k: int | None, activation: str | None) -> Ranking:
        """A copy with the given changes. Raises `InvalidParameter` for more classes than there are."""
        logits = self.logits if activation is None else activation == "none"
        return Ranking.of(classes, top_k or self.k, self.k, "none" if logits else "softmax")

    def predictions(
        self, result: NDArray[np.float32], classes: Sequence[ClassLabel], activation: str
    ) -> list[dict[str, Any]]:
        """The best classes of logits ``[classes]``, best first, ties by ascending index.

        ``activation`` is the checkpoint's own: ``softmax``, ``sigmoid``, or ``none`` for a model whose output is
        probabilities already. All of ``result`` must be finite (`finite`).
        """
        best = top(result, self.k)
        key = "logit" if self.logits else "probability"
        scores = result if self.logits else activate(result, activation)
        return [
            {"class_id": entry.class_id, "wnid": entry.wnid, "label": entry.label, key: score}
            for entry, score in zip(
                map(classes.__getitem__, best.tolist()), scores[best].tolist(), strict=True
            )
        ]


def finite(result: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the model's ``result``. Raises `NotANumber` if it has a NaN or an infinity."""
    if not np.isfinite(result).all():
        raise NotANumber
    return result


def top(scores: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Indices of the ``k`` largest of ``scores``, descending, ties by ascending index."""
    # Methods, since NumPy's functions of the same names cost more than the work on 1,000 numbers.
    ordered = scores.copy()
    ordered.partition(len(scores) - k)
    # In ascending order of their indices, so that the stable sort below keeps ties in that order.
    candidates: NDArray[np.intp] = (scores >= ordered[len(scores) - k]).nonzero()[0]
    order = (-scores[candidates]).argsort(kind="stable")
    return candidates[order[:k]]


def activate(logits: NDArray[np.float32], activation: str) -> NDArray[np.float64]:
    """Probabilities of ``logits``, computed in float64 so that the activation adds no error of its own."""
    wide = logits.astype(np.float64)
    if activation == "softmax":
        powers = np.exp(wide - np.maximum.reduce(wide))
        return np.asarray(powers / np.add.reduce(powers))
    if activation == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-wide)))
    return wide
