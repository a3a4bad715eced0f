"""What is loaded, as far as it can be told without a tensor: the engine writes it, front-ends read it."""

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
    feature_pooling: str = "avg"
    """What `/features` pools by where a request does not say."""
    fallbacks: tuple[Fallback, ...] = ()
    """What the service goes on without, and why."""
    top1: float | None = None
    top5: float | None = None

    @property
    def untrained(self) -> bool:
        """Whether the weights are random numbers."""
        return self.weights.startswith("random:")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "preprocessing": self.preprocessing.to_json()}

    def to_bytes(self) -> bytes:
        return json.dumps(self.to_json()).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> ModelCard:
        """What `to_bytes` wrote."""
        return cls.from_json(json.loads(data))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelCard:
        """What `to_json` gave."""
        document = dict(values)
        document["image"] = tuple(document["image"])
        document["fallbacks"] = tuple(Fallback(*told) for told in document["fallbacks"])
        document["feature_shape"] = tuple(document["feature_shape"])
        document["preprocessing"] = Preprocessing.from_json(document["preprocessing"])
        document["classes"] = tuple(ClassLabel(**entry) for entry in document["classes"])
        return cls(**document)
