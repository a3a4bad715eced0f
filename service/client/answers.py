"""The service's answers as values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.client.errors import ApiError


@dataclass(frozen=True)
class Prediction:
    """One class, with its probability, or with its logit if ``activation="none"`` was asked for."""

    class_id: int
    wnid: str | None
    label: str
    probability: float | None = None
    logit: float | None = None


@dataclass(frozen=True)
class Timings:
    """The time of each stage, in milliseconds."""

    decode: float
    queue: float
    inference: float
    total: float


@dataclass(frozen=True)
class Predictions:
    """The best classes of one photo, best first."""

    request_id: str
    model: str
    weights: str
    predictions: tuple[Prediction, ...]
    timings_ms: Timings

    @property
    def best(self) -> Prediction:
        return self.predictions[0]


@dataclass(frozen=True)
class BatchItem:
    """The result for one photo of several: its classes, or its error."""

    filename: str
    predictions: tuple[Prediction, ...] = ()
    error: ApiError | None = None


@dataclass(frozen=True)
class BatchPredictions:
    """One result for each photo, in order."""

    request_id: str
    model: str
    weights: str
    results: tuple[BatchItem, ...]


@dataclass(frozen=True, eq=False)
class Features:
    """The backbone's output for one photo, float32 ``[C]``, or ``[C, h, w]`` without pooling."""

    request_id: str
    array: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Explanation:
    """The contribution of each part of a photo to one class's logit, float32 ``grid`` ``[h, w]``.

    The grid covers the ``box`` of the upright photo: left, top, right, bottom, as fractions of its sides.
    """

    request_id: str
    model: str
    weights: str
    class_id: int
    wnid: str | None
    label: str
    probability: float
    method: str
    grid: NDArray[np.float32]
    box: tuple[float, float, float, float]
    timings_ms: Timings
