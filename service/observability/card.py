"""The description of a loaded model without its tensors. The engine writes it, front-ends read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from service.labels import ClassLabel
from service.preprocess import Preprocessing
from service.shared.fallback import Fallback


@dataclass(frozen=True)
class ModelCard:
    """One loaded model. ``image`` is the slot's height, width and channels; ``top1`` and ``top5`` are percent."""

    name: str
    family: str
    parameters: int
    weights: str
    source: str
    sha256: str | None
    image: tuple[int, int, int]
    preprocessing: Preprocessing
    classes: tuple[ClassLabel, ...]
    """Empty for a checkpoint without a head, which has features but no predictions."""
    feature_shape: tuple[int, int, int]
    """The last block's output: channels, height, width."""
    activation: str
    precision: str
    device: str
    runtime: str
    max_batch_size: int
    feature_pooling: str = "avg"
    """The pooling of `/features` unless a request names another."""
    fallbacks: tuple[Fallback, ...] = ()
    """The optional features that the service goes on without."""
    top1: float | None = None
    top5: float | None = None

    @property
    def untrained(self) -> bool:
        """True if the weights are random numbers."""
        return self.weights.startswith("random:")

    def to_json(self) -> dict[str, Any]:
        """The card as plain JSON values."""
        return {**asdict(self), "preprocessing": self.preprocessing.to_json()}

    def to_bytes(self) -> bytes:
        return json.dumps(self.to_json()).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> ModelCard:
        """The inverse of `to_bytes`."""
        return cls.from_json(json.loads(data))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelCard:
        """The inverse of `to_json`."""
        document = dict(values)
        document["image"] = tuple(document["image"])
        document["fallbacks"] = tuple(Fallback(*told) for told in document["fallbacks"])
        document["feature_shape"] = tuple(document["feature_shape"])
        document["preprocessing"] = Preprocessing.from_json(document["preprocessing"])
        document["classes"] = tuple(ClassLabel(**entry) for entry in document["classes"])
        return cls(**document)
