"""From logits to the classes of an answer."""

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
    """Which classes an answer names, and as what: probabilities, or logits."""

    k: int
    logits: bool = False

    @classmethod
    def of(cls, classes: Sequence[ClassLabel], top_k: int | None, default: int, activation: str) -> Ranking:
        """The ranking that a request asks for. Raises `InvalidParameter` for more classes than there are."""
        if top_k is not None and top_k > len(classes):
            raise InvalidParameter(f"top_k: {top_k} is more than the model's {len(classes)} classes")
        return cls(min(top_k or default, len(classes)), activation == "none")

    def changed(self, classes: Sequence[ClassLabel], top_k: int | None, activation: str | None) -> Ranking:
        """The same, but for what is given. Raises `InvalidParameter` for more classes than there are."""
        logits = self.logits if activation is None else activation == "none"
        return Ranking.of(classes, top_k or self.k, self.k, "none" if logits else "softmax")

    def predictions(
        self, result: NDArray[np.float32], classes: Sequence[ClassLabel], activation: str
    ) -> list[dict[str, Any]]:
        """The best classes of logits ``[classes]``, best first, ties by ascending index.

        ``activation`` is the checkpoint's own: ``softmax``, ``sigmoid``, or ``none`` for a model whose
        output is probabilities already. The caller has seen that every logit is a number.
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
    """The model's ``result``. Raises `NotANumber` when some of it is not a number."""
    if not np.isfinite(result).all():
        raise NotANumber
    return result


def top(scores: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Indices of the ``k`` largest of ``scores``, descending, ties by ascending index."""
    # Methods where there are any: NumPy's functions of the same name cost more than their work on 1,000 numbers.
    ordered = scores.copy()
    ordered.partition(len(scores) - k)
    # Ascending, so that a stable sort keeps ties in order.
    candidates: NDArray[np.intp] = (scores >= ordered[len(scores) - k]).nonzero()[0]
    order = (-scores[candidates]).argsort(kind="stable")
    return candidates[order[:k]]


def activate(logits: NDArray[np.float32], activation: str) -> NDArray[np.float64]:
    """Probabilities of ``logits``, in double precision so that this step adds no error of its own."""
    wide = logits.astype(np.float64)
    if activation == "softmax":
        powers = np.exp(wide - np.maximum.reduce(wide))
        return np.asarray(powers / np.add.reduce(powers))
    if activation == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-wide)))
    return wide
