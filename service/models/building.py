"""Builds a runner from weights, with torch: at a first start, and always on a GPU or with a runtime other than
OpenVINO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from service.errors import ConfigurationError
from service.models import canary, loaded, loader, sources
from service.models.catalog import VARIANTS
from service.models.checkpoints import Checkpoint, Progress, resolve
from service.models.explain import Explainer
from service.models.loaded import Loaded, Report
from service.models.loader import Uint8Model
from service.models.placement import Placement, place
from service.models.runner import ModelRunner
from service.models.runtimes import Runtime, artifact, manifest
from service.models.runtimes.artifact import Converted
from service.models.runtimes.eager import Eager
from service.observability.card import ModelCard
from service.settings import Settings, available_cores
from service.shared.fallback import Fallbacks

#: Threads of torch while it computes a single answer. More would spin while they wait for each other: on two busy
#: cores that took 9 s instead of 0.2 s.
_FOR_ONE_IMAGE = 1


def prepare(settings: Settings, placement: Placement, report: Report, progress: Progress) -> None:
    """Converts the model into the cache, where a later `load` finds it. Raises `StartError`."""
    torch.set_num_threads(_FOR_ONE_IMAGE)
    checkpoint, model, card = _read(settings, progress)

    def say(detail: str) -> object:
        return report("loading", detail)

    if _converted(model, checkpoint, card, placement, say, Fallbacks()) is not None:
        sources.remember(settings.weights, settings.named_model, checkpoint, card)


def export(settings: Settings, out: Path) -> None:
    """Writes the model, converted for OpenVINO, into the directory ``out``. Raises `StartError`."""
    from service.models.runtimes import converting

    torch.set_num_threads(_FOR_ONE_IMAGE)
    placement = place("cpu" if settings.device == "auto" else settings.device, settings.precision, "openvino")
    checkpoint, model, card = _read(settings, None)
    try:
        converted = converting.convert(
            model, checkpoint, loaded.labelled(card, settings.labels), placement.precision
        )
        converting.write(out, converted, checkpoint)
    except converting.ConversionError as error:
        raise ConfigurationError(f"export: OpenVINO cannot convert this model: {error}") from error
    except OSError as error:
        raise ConfigurationError(f"'{out.name}' cannot be written: {error.strerror or error}") from error


def _read(settings: Settings, progress: Progress | None) -> tuple[Checkpoint, Uint8Model, ModelCard]:
    checkpoint = resolve(settings.weights, settings.named_model, progress=progress)
    model = loader.load(checkpoint)
    return checkpoint, model, describe(checkpoint, model)


def load(
    settings: Settings,
    placement: Placement,
    report: Report,
    progress: Progress | None,
    given_up: Sequence[str] = (),
) -> Loaded:
    """Loads the settings' model onto its device. Raises `StartError` with one sentence if that is impossible.

    ``given_up`` has the meaning that it has in `service.models.serving.load`.
    """
    fallbacks = Fallbacks()
    torch.set_num_threads(available_cores())
    checkpoint, model, card = _read(settings, progress)

    def say(detail: str) -> object:
        return report("loading", detail)

    if placement.runtime == "openvino":
        converted = _converted(model, checkpoint, card, placement, say, fallbacks)
        if converted is not None:
            sources.remember(settings.weights, settings.named_model, checkpoint, card)
            return loaded.openvino(converted, card, settings, placement)
    head = loader.head_of(model, checkpoint)
    explainer = Explainer(head) if head is not None else None
    largest = loaded.chosen_largest(settings)
    described = loaded.labelled(card, settings.labels)
    if placement.on_cuda:
        # This module needs a device and is slow to import.
        from service.models.cuda.start import start

        started = start(checkpoint, placement, largest, explainer, say, fallbacks, given_up)
        return Loaded(started, placement.device, described, fallbacks)
    image = checkpoint.preprocessing.shape
    expected = canary.expected(model, image, has_head=checkpoint.classes is not None)
    runtime = _runtime(model, checkpoint, placement, say)
    runner = ModelRunner(runtime, image, largest, explainer, expected=expected)
    return Loaded(runner, placement.device, described, fallbacks)


def describe(checkpoint: Checkpoint, model: Uint8Model) -> ModelCard:
    """Returns the checkpoint's card. Its fields about device, runtime and precision stay empty."""
    variant = next(
        (item for item in VARIANTS.values() if item.configuration == checkpoint.configuration), None
    )
    published = variant if variant and checkpoint.name == variant.weights_name else None
    return ModelCard(
        name=variant.name if variant else checkpoint.configuration.family,
        family=checkpoint.configuration.family,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weights=checkpoint.name,
        source=checkpoint.source,
        sha256=checkpoint.sha256,
        image=checkpoint.preprocessing.shape,
        preprocessing=checkpoint.preprocessing,
        classes=checkpoint.classes or (),
        feature_shape=(0, 0, 0),
        activation=checkpoint.activation,
        precision="",
        device="",
        runtime="",
        max_batch_size=0,
        feature_pooling=checkpoint.feature_pooling,
        top1=published.top1 if published else None,
        top5=published.top5 if published else None,
    )


def _converted(
    model: Uint8Model,
    checkpoint: Checkpoint,
    card: ModelCard,
    placement: Placement,
    say: Callable[[str], object],
    fallbacks: Fallbacks,
) -> Converted | None:
    """Returns the model for OpenVINO; None if OpenVINO cannot run it and ``runtime`` is auto."""
    # It imports OpenVINO, which a GPU's host need not have.
    from service.models.runtimes import converting

    if placement.artifact is not None:
        found = artifact.read(placement.artifact)
        manifest.refuse_another(found.about, checkpoint, placement.artifact.name, artifact.KIND)
        return found.open()
    try:
        return converting.load(model, checkpoint, card, placement.precision, say)
    except converting.ConversionError as error:
        if not placement.chosen:
            raise ConfigurationError(
                f"runtime=openvino: this model cannot be converted ({error}); use runtime=eager"
            ) from error
        fallbacks.add("openvino", error)
        return None


def _runtime(
    model: Uint8Model, checkpoint: Checkpoint, placement: Placement, say: Callable[[str], object]
) -> Runtime:
    if placement.runtime in ("compile", "package"):
        # These import torch's compiler.
        from service.models.runtimes import ahead

        return ahead.load(model, checkpoint, placement, say)
    return Eager(model, placement.precision, has_head=checkpoint.classes is not None)
