"""From the settings to a model on its device, with its description. What the engine and `classify` start from.

converted before   sources.py ─▶ runtimes/artifact.py ─▶ runtimes/openvino.py      no torch, a second
anything else      building.py: checkpoints/ ─▶ loader.py ─▶ a runtime             with torch
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from service.errors import ConfigurationError
from service.models import cache, sources
from service.models.catalog import VARIANTS
from service.models.checkpoints import Progress
from service.models.checkpoints.label_files import read_labels_of
from service.models.explain import Explainer
from service.models.placement import Placement, place
from service.models.runner import ModelRunner
from service.models.runtimes import artifact, machine
from service.models.runtimes.artifact import Converted
from service.observability.card import ModelCard
from service.settings import Settings, available_cores
from service.shared.fallback import Fallbacks

if TYPE_CHECKING:
    from service.models.cuda.pipeline import StreamRunner

log = logging.getLogger(__name__)

#: The folder of the converted model that an image was built with (Dockerfile, WEIGHTS).
_BAKED = "BAKED_MODEL"

#: Called with a state (``loading``, ``warming``) and what is being done.
Report = Callable[[str, str], object]


@dataclass(frozen=True)
class Loaded:
    """A model that is not warmed up yet. ``described`` is what is known of it without its runner."""

    runner: ModelRunner | StreamRunner
    device: str
    described: ModelCard
    fallbacks: Fallbacks = field(default_factory=Fallbacks)

    def card(self) -> ModelCard:
        """The description for the front-ends."""
        return replace(
            self.described,
            feature_shape=self.runner.feature_shape,
            precision=self.runner.runtime.precision,
            device=self.device,
            runtime=self.runner.runtime.name,
            max_batch_size=self.runner.max_batch_size,
            fallbacks=tuple(self.fallbacks),
        )


def load(
    settings: Settings, report: Report, progress: Progress | None = None, given_up: Sequence[str] = ()
) -> Loaded:
    """The model of the settings' on its device. Raises `StartError` with one sentence when it cannot be had.

    On CUDA, one way to run the model is left out for each reason in ``given_up``.
    """
    of = f" of {settings.model}" if settings.named_model or settings.weights == "pretrained" else ""
    report("loading", f"weights {settings.weights}{of}")
    placement = place(settings.device, settings.precision, settings.runtime)
    found = _prepared(settings, placement, progress)
    if found is not None:
        return found
    refuse_without_torch(settings.weights)
    # With torch, which takes a second to import and some 200 MB to keep.
    from service.models import building

    return building.load(settings, placement, report, progress, given_up)


def wants_preparing(settings: Settings, progress: Progress | None = None) -> bool:
    """Whether a start with these settings converts a model first, into a cache that keeps it."""
    placement = place(settings.device, settings.precision, settings.runtime)
    if placement.runtime != "openvino" or converted_weights(settings.weights, settings.model) is not None:
        return False
    source = sources.find(settings.weights, settings.named_model, progress)
    if source is not None and placement.artifact is None:
        if artifact.cached(source.fingerprint, placement.precision).is_dir():
            return False
    elif source is not None:
        return False
    return cache.is_writable()


def _prepared(settings: Settings, placement: Placement, progress: Progress | None) -> Loaded | None:
    """The model as an earlier start, or a command, has converted it; None where that has to be done first."""
    path = converted_weights(settings.weights, settings.model)
    if path is not None:
        return _of_directory(path, settings, placement)
    if placement.runtime != "openvino":
        return None
    source = sources.find(settings.weights, settings.named_model, progress)
    if source is None:
        return None
    if placement.artifact is not None:
        found = artifact.read(placement.artifact)
        if found.fingerprint != source.fingerprint:
            return None  # what is wrong with it says who has read the weights
    else:
        kept = artifact.from_cache(artifact.cached(source.fingerprint, placement.precision))
        if kept is None:
            return None
        found = kept
    return openvino(found.open(), source.card, settings, placement)


def converted_weights(weights: str, model: str) -> Path | None:
    """The folder with a converted model that these weights are: named by them, or what the image was built with."""
    path = Path(weights).expanduser()
    if artifact.is_one(path):
        return path
    baked = _baked()
    if weights != "pretrained" or baked is None:
        return None
    card = artifact.read(baked).open().card
    return baked if (card.name, card.weights) == (model, VARIANTS[model].weights_name) else None


def _baked() -> Path | None:
    """The converted model that this image was built with."""
    path = Path(os.environ.get(_BAKED, ""))
    return path if _BAKED in os.environ and artifact.is_one(path) else None


def refuse_without_torch(weights: str) -> None:
    """Raises `ConfigurationError` where there is nothing to read weights with."""
    if find_spec("torch") is None:
        baked = _baked()
        own = f"what this image was built with (weights={baked}), " if baked is not None else ""
        raise ConfigurationError(
            f"weights={weights}: torch has to read and convert them, and this installation has none: serve {own}what "
            "`imagenet-serve export DIRECTORY --runtime openvino` has made, or an image that was built with this model"
        )


def _of_directory(path: Path, settings: Settings, placement: Placement) -> Loaded:
    """Weights that are a converted model themselves."""
    if placement.runtime != "openvino" or placement.artifact not in (None, path):
        raise ConfigurationError(
            f"'{path.name}' is a model converted for OpenVINO on the CPU; leave device, runtime and precision to auto"
        )
    converted = artifact.read(path).open()
    return openvino(converted, converted.card, settings, placement)


def openvino(converted: Converted, card: ModelCard, settings: Settings, placement: Placement) -> Loaded:
    """A runner for a converted model. ``card`` is what the weights are called here."""
    # Not every installation has it.
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
    """The largest batch that the setting allows; None where that is left to the warm-up."""
    return None if settings.max_batch_size == "auto" else settings.max_batch_size


def labelled(card: ModelCard, labels: Path | None) -> ModelCard:
    """With the classes of the file ``labels``, if there is one. Raises `CheckpointError` unless they are as many."""
    return card if labels is None else replace(card, classes=read_labels_of(labels, len(card.classes)))


__all__ = ["Loaded", "Report", "chosen_largest", "labelled", "load", "openvino"]
