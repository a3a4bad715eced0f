"""Writes the requested outputs of each image into the slots' results."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from service.models.explain import Explainer
from service.models.runtimes import Answer
from service.shared.outputs import Explain, OutputKind, OutputRequest


class OutputWriter:
    """Writes outputs. ``explainer`` is None for a network without a head, which front-ends do not ask for maps."""

    def __init__(self, explainer: Explainer | None = None) -> None:
        self.explainer = explainer

    def __call__(
        self,
        slots: Sequence[int],
        wanted: Sequence[OutputRequest],
        answers: Sequence[Answer],
        results: NDArray[np.float32],
    ) -> None:
        """Writes the ``wanted`` output of each answer to ``results[slots]``."""
        rest = self.begin(slots, wanted, answers, results)
        if rest is not None:
            rest()

    def begin(
        self,
        slots: Sequence[int],
        wanted: Sequence[OutputRequest],
        answers: Sequence[Answer],
        results: NDArray[np.float32],
    ) -> Callable[[], None] | None:
        """Writes the outputs that need little arithmetic, and returns the rest, which reads ``answers`` no more.

        A VGG's map takes the gradient of 124 million weights: tenths of a second on a CPU.
        """
        looks: list[tuple[int, Explain, Answer]] = []
        for slot, want, answer in zip(slots, wanted, answers, strict=True):
            if isinstance(want, Explain):
                looks.append((slot, want, answer))
                continue
            result = answer.logits
            if want is not OutputKind.CLASSIFY:
                result = pool(answer.features, want).ravel()
            results[slot, : result.size] = result
        return self._explain(looks, results) if looks else None

    def _explain(
        self, looks: list[tuple[int, Explain, Answer]], results: NDArray[np.float32]
    ) -> Callable[[], None]:
        """Writes each slot's logits, and returns the work that writes the maps of the wanted classes, all at once."""
        assert self.explainer is not None
        explainer, slots = self.explainer, [slot for slot, _, _ in looks]
        classes = [
            int(answer.logits.argmax()) if want.class_index is None else want.class_index
            for _, want, answer in looks
        ]
        features = np.stack([answer.features for _, _, answer in looks])
        logits = looks[0][2].logits.size
        for slot, _, answer in looks:
            results[slot, :logits] = answer.logits

        def draw() -> None:
            maps = explainer.maps(features, classes).reshape(len(slots), -1)
            results[slots, logits : logits + maps.shape[1]] = maps

        return draw


def max_output_length(logits: int, features: tuple[int, int, int]) -> int:
    """Returns the length of the longest output in float32: all features ``[C, h, w]``, or logits with a map ``[h,
    w]``."""
    channels, height, width = features
    return max(logits + height * width, channels * height * width)


def pool(features: NDArray[np.float32], task: OutputKind) -> NDArray[np.float32]:
    """Returns one image's features ``[C, h, w]``, pooled as ``task`` wants them."""
    if task is OutputKind.FEATURES_AVG:
        average: NDArray[np.float32] = features.mean((1, 2))
        return average
    if task is OutputKind.FEATURES_MAX:
        largest: NDArray[np.float32] = features.max((1, 2))
        return largest
    return features
