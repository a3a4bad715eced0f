"""What is loaded, as far as it can be told without a tensor: the engine writes it, front-ends read it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from service.labels import ClassLabel
from service.preprocess import Preprocessing


@dataclass(frozen=True)
class ModelCard:
    """One loaded model. ``image`` is the slot's height, width and channels; figures in percent."""

    name: str
    family: str
    parameters: int
    weights: str
    source: str
    sha256: str | None
    image: tuple[int, int, int]
    preprocessing: Preprocessing
    classes: tuple[ClassLabel, ...]
    """Empty for a checkpoint without a head: it has features and no answers."""
    feature_shape: tuple[int, int, int]
    """The last block's output: channels, height, width."""
    activation: str
    precision: str
    device: str
    runtime: str
    max_batch_size: int
    top1: float | None = None
    top5: float | None = None

    @property
    def untrained(self) -> bool:
        """Whether the weights are random numbers."""
        return self.weights.startswith("random:")

    def to_bytes(self) -> bytes:
        document = asdict(self)
        document["preprocessing"] = self.preprocessing.to_json()
        return json.dumps(document).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> ModelCard:
        """What `to_bytes` wrote."""
        document: dict[str, Any] = json.loads(data)
        document["image"] = tuple(document["image"])
        document["feature_shape"] = tuple(document["feature_shape"])
        document["preprocessing"] = Preprocessing.from_json(document["preprocessing"])
        document["classes"] = tuple(ClassLabel(**entry) for entry in document["classes"])
        return cls(**document)
