"""`imagenet-serve evaluate --calibrate`: a temperature from labelled photographs, and a checkpoint that has it.

Every other photo is for a fit, and the rest tells what that does: a temperature flatters the photos that it was
fitted on. What is written then has the temperature of all of them.
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
    """A ``temperature``, and the expected calibration error in percent that one of half of the ``images`` leaves."""

    temperature: float
    images: int
    ece_before: float
    ece_after: float


def ready(settings: Settings) -> Checkpoint:
    """The checkpoint that is to be calibrated. Raises `StartError` where that cannot work, before anything is done."""
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
    """From the logits of each photo and the column of its class. Raises `ConfigurationError` for too few."""
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
    """The checkpoint directory ``out``, with the temperature in the last layer and a note of how that came."""
    from service.models import checkpoints

    scaled = folded(checkpoint, calibration.temperature)
    checkpoints.write(scaled, out, notes={"calibration": asdict(calibration)})
