"""`imagenet-serve evaluate --calibrate`: fits a temperature on labelled photos and writes a checkpoint with it.

The reported gain is honest: a temperature is fitted on every other photo, and its calibration error is measured on
the rest, since it looks too good on the photos that it was fitted on. The written temperature is fitted on all photos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.cli.evaluate.score import Reliability
from service.cli.evaluate.temperature import fitted, folded, require_softmax, softmax
from service.errors import ConfigurationError
from service.settings import Settings

if TYPE_CHECKING:
    from service.models.checkpoints import Checkpoint


@dataclass(frozen=True)
class Calibration:
    """A temperature, and the expected calibration error (percent) without it and with it, on held-out photos."""

    temperature: float
    """Fitted on all ``images``."""
    images: int
    ece_before: float
    ece_after: float
    """The error with a temperature that was fitted on the other half of the images."""


def ready(settings: Settings) -> Checkpoint:
    """Reads the checkpoint that is to be calibrated. Raises `StartError` if it cannot be calibrated."""
    from service.models.checkpoints import resolve

    if Path(settings.runtime).is_dir():
        raise ConfigurationError(
            "--calibrate is for weights and --runtime names an artifact made of them: calibrate the weights, and "
            "make the artifact again"
        )
    checkpoint = resolve(settings.weights, settings.named_model, labels=settings.labels)
    require_softmax(checkpoint)
    return checkpoint


def calibrated(logits: Sequence[NDArray[np.float32]], columns: Sequence[int]) -> Calibration:
    """Fits the temperature. ``logits`` are float32 ``[classes]`` a photo; ``columns`` are the true classes' columns.

    Raises `ConfigurationError` for too few photos, or photos that determine no temperature.
    """
    table, truths = np.array(logits, np.float32), np.array(columns, np.intp)
    if len(table) < 2:
        raise ConfigurationError(f"{len(table)} photos tell no temperature; give a few hundred")
    fit, check = slice(0, None, 2), slice(1, None, 2)
    half = fitted(table[fit], truths[fit])
    return Calibration(
        temperature=fitted(table, truths),
        images=len(table),
        ece_before=_ece(table[check], truths[check], 1.0),
        ece_after=_ece(table[check], truths[check], half),
    )


def _ece(logits: NDArray[np.float32], truths: NDArray[np.intp], temperature: float) -> float:
    reliability = Reliability()
    for row, truth in zip(logits, truths, strict=True):
        probabilities = softmax(row.astype(np.float64) / temperature)
        best = int(probabilities.argmax())
        reliability.add(float(probabilities[best]), best == truth)
    return reliability.error


def write(checkpoint: Checkpoint, calibration: Calibration, out: Path) -> None:
    """Writes the checkpoint into ``out``, with the temperature in its last layer and a note of its calibration."""
    from service.models import checkpoints

    scaled = folded(checkpoint, calibration.temperature)
    checkpoints.write(scaled, out, notes={"calibration": asdict(calibration)})
