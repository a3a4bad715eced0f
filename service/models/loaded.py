"""A loaded model and its description; built with torch or without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from service.models.checkpoints.label_files import read_labels_of
from service.models.explain import Explainer
from service.models.placement import Placement
from service.models.runner import ModelRunner
from service.models.runtimes import machine
from service.models.runtimes.artifact import Converted
from service.observability.card import ModelCard
from service.settings import Settings, available_cores
from service.shared.fallback import Fallbacks

if TYPE_CHECKING:
    from service.models.cuda.pipeline import CudaRunner

#: Called with a state (``loading``, ``warming``) and a sentence about the work.
Report = Callable[[str, str], object]


@dataclass(frozen=True)
class Loaded:
    """A model that is not warmed up yet. ``described`` holds what is known without its runner."""

    runner: ModelRunner | CudaRunner
    device: str
    described: ModelCard
    fallbacks: Fallbacks = field(default_factory=Fallbacks)

    def card(self) -> ModelCard:
        """Returns the complete model card for the front-ends."""
        return replace(
            self.described,
            feature_shape=self.runner.feature_shape,
            precision=self.runner.runtime.precision,
            device=self.device,
            runtime=self.runner.runtime.name,
            max_batch_size=self.runner.max_batch_size,
            fallbacks=tuple(self.fallbacks),
        )


def openvino(converted: Converted, card: ModelCard, settings: Settings, placement: Placement) -> Loaded:
    """Makes a runner for a converted model. ``card`` describes the weights as they are named here."""
    # OpenVINO is an optional dependency.
    from service.models.runtimes.openvino import runtime

    own = placement.artifact is not None or converted.precision == "int8"
    precision = converted.precision if own else placement.precision
    cores, largest = available_cores(), chosen_largest(settings)
    notes = machine.Notes()
    if converted.directory is not None:
        notes = machine.notes(converted.directory, cores, precision, largest)
    explainer = Explainer(converted.head) if converted.head is not None else None
    shapes = converted.card.feature_shape, len(converted.card.classes)
    chosen = runtime(converted, precision, cores, card.image, notes)
    runner = ModelRunner(chosen, card.image, largest, explainer, shapes, notes, converted.expected)
    return Loaded(runner, placement.device, labelled(card, settings.labels))


def chosen_largest(settings: Settings) -> int | None:
    """Returns the largest batch that the setting allows; None if the warm-up chooses it."""
    return None if settings.max_batch_size == "auto" else settings.max_batch_size


def labelled(card: ModelCard, labels: Path | None) -> ModelCard:
    """Returns the card with the classes of the file ``labels``, if given. Raises `CheckpointError` if their number
    differs."""
    return card if labels is None else replace(card, classes=read_labels_of(labels, len(card.classes)))
