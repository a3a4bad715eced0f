"""From the settings to a model on its device, with its description. What the engine and `classify` start from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from service.card import ModelCard
from service.errors import ConfigurationError
from service.models import loader
from service.models.catalog import VARIANTS
from service.models.checkpoints import Checkpoint, Progress, resolve
from service.models.explain import Explainer
from service.models.loader import Uint8Model
from service.models.placement import Placement, place
from service.models.runner import ModelRunner
from service.models.runtimes import Runtime
from service.models.runtimes.eager import Eager
from service.settings import Settings, available_cores

if TYPE_CHECKING:
    from service.models.cuda.pipeline import StreamRunner

log = logging.getLogger(__name__)

#: Called with a state (``loading``, ``warming``) and what is being done.
Report = Callable[[str, str], object]


@dataclass(frozen=True)
class Loaded:
    """A model that is not warmed up yet."""

    runner: ModelRunner | StreamRunner
    device: str
    checkpoint: Checkpoint
    """Without its tensors: the runner has them in a form of its own."""
    parameters: int

    def card(self) -> ModelCard:
        """The description for the front-ends."""
        checkpoint, runtime = self.checkpoint, self.runner.runtime
        variant = next(
            (item for item in VARIANTS.values() if item.configuration == checkpoint.configuration), None
        )
        published = variant if variant and checkpoint.name == variant.weights_name else None
        return ModelCard(
            name=variant.name if variant else checkpoint.configuration.family,
            family=checkpoint.configuration.family,
            parameters=self.parameters,
            weights=checkpoint.name,
            source=checkpoint.source,
            sha256=checkpoint.sha256,
            image=checkpoint.preprocessing.shape,
            preprocessing=checkpoint.preprocessing,
            classes=checkpoint.classes or (),
            feature_shape=self.runner.feature_shape,
            activation=checkpoint.activation,
            precision=runtime.precision,
            device=self.device,
            runtime=runtime.name,
            max_batch_size=self.runner.max_batch_size,
            top1=published.top1 if published else None,
            top5=published.top5 if published else None,
        )


def load(settings: Settings, report: Report, progress: Progress | None = None) -> Loaded:
    """The model of the settings' on its device. Raises `StartError` with one sentence when it cannot be had."""
    torch.set_num_threads(available_cores())
    placement = place(settings.device, settings.precision, settings.runtime)
    report("loading", f"weights {settings.weights} of {settings.model}")
    checkpoint = resolve(settings.weights, settings.model, labels=settings.labels, progress=progress)
    model = loader.load(checkpoint)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    largest = None if settings.max_batch_size == "auto" else settings.max_batch_size
    runner = _runner(model, checkpoint, placement, largest, lambda detail: report("loading", detail))
    return Loaded(runner, placement.device, replace(checkpoint, state_dict={}), parameters)


def _runner(
    model: Uint8Model,
    checkpoint: Checkpoint,
    placement: Placement,
    largest: int | None,
    report: Callable[[str], object],
) -> ModelRunner | StreamRunner:
    if placement.on_cuda:
        # Of no use without a device, and not quick to import.
        from service.models.cuda.start import start

        explainer = Explainer(model.network) if checkpoint.classes is not None else None
        return start(checkpoint, placement, largest, explainer, report)
    runtime = _runtime(model, checkpoint, placement, report)
    explainer = _explainer(model, runtime) if checkpoint.classes is not None else None
    return ModelRunner(runtime, checkpoint.preprocessing.shape, largest, explainer)


def _explainer(model: Uint8Model, runtime: Runtime) -> Explainer:
    explainer = Explainer(model.network)
    if runtime.name == "openvino":
        from service.models.runtimes.openvino import OpenVino

        assert isinstance(runtime, OpenVino)
        explainer.borrow(runtime.constants())
    return explainer


def _runtime(
    model: Uint8Model, checkpoint: Checkpoint, placement: Placement, report: Callable[[str], object]
) -> Runtime:
    """The runtime that was asked for; where that was left to us, torch takes the place of one that fails."""
    if placement.runtime == "openvino":
        # Not every installation has it.
        from service.models.runtimes import openvino

        if placement.artifact is not None:
            return openvino.open_artifact(placement.artifact, checkpoint, available_cores())
        try:
            return openvino.load(model, checkpoint, placement.precision, available_cores(), report)
        except openvino.ConversionError as error:
            if not placement.chosen:
                raise ConfigurationError(
                    f"runtime=openvino: this model cannot be converted ({error}); use runtime=eager"
                ) from error
            log.warning("OpenVINO cannot run this model (%s), so it runs on torch alone, more slowly", error)
    has_head = checkpoint.classes is not None
    if placement.runtime in ("compile", "package"):
        # They bring torch's compiler along.
        from service.models.runtimes import ahead

        return ahead.load(model, checkpoint, placement, report)
    return Eager(model, placement.precision, has_head=has_head)
