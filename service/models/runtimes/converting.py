"""Converts a checkpoint to an artifact that serves without torch: the slow part of a first start."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from service.errors import ConfigurationError
from service.models import canary
from service.models.checkpoints import Checkpoint
from service.models.loader import Uint8Model, head_of
from service.models.runtimes import artifact, conversion, manifest, winograd
from service.models.runtimes.artifact import Converted
from service.models.runtimes.conversion import ConversionError
from service.observability.card import ModelCard

log = logging.getLogger(__name__)


def load(
    model: Uint8Model,
    checkpoint: Checkpoint,
    card: ModelCard,
    precision: str,
    report: Callable[[str], object],
) -> Converted:
    """Returns the checkpoint's converted model, from the cache or made now. ``report`` is called before slow work.

    Raises `ConversionError` if OpenVINO cannot run the model.
    """
    directory = artifact.cached(manifest.fingerprint(checkpoint), precision)
    found = artifact.from_cache(directory)
    if found is not None:
        return found.open()
    report("converting the model for OpenVINO; the next start finds it in the cache")
    log.info("converting the model for OpenVINO; the next start finds it in the cache")
    began = time.monotonic()
    made = convert(model, checkpoint, card, precision)
    log.info("converted in %.1f s", time.monotonic() - began)
    try:
        write(directory, made, checkpoint)
        artifact.prune()
        return artifact.read(directory).open()
    except (OSError, ConfigurationError) as error:
        log.warning("the conversion is not cached, so every start takes this long: %s", error)
        return made


def convert(model: Uint8Model, checkpoint: Checkpoint, card: ModelCard, precision: str) -> Converted:
    """Converts the model for OpenVINO, to be run in ``precision``. Raises `ConversionError`."""
    image, has_head = checkpoint.preprocessing.shape, checkpoint.classes is not None
    expected = canary.expected(model, image, has_head=has_head)
    direct = conversion.convert(model, image, has_head=has_head, expected=expected)
    graphs = {artifact.DIRECT: artifact.Graph(None, direct)}
    features = winograd.features(model, *image[:2]) if precision == "fp32" else None
    if features is not None:
        try:
            fewer = conversion.convert(model, image, has_head=has_head, features=features, expected=expected)
            graphs[artifact.WINOGRAD] = artifact.Graph(None, fewer)
        except ConversionError as error:
            log.warning("Winograd's convolutions are not used: %s", error)
    channels, height, width = (side.get_length() for side in list(direct.outputs[0].partial_shape)[1:])
    card = replace(card, feature_shape=(channels, height, width))
    return Converted(graphs, head_of(model, checkpoint), card, "fp32", expected)


def write(directory: Path, converted: Converted, checkpoint: Checkpoint) -> None:
    """Writes the converted model as an artifact. Raises `OSError`."""
    graphs = converted.graphs
    fewer = graphs[artifact.WINOGRAD].model() if artifact.WINOGRAD in graphs else None
    direct = graphs[artifact.DIRECT].model()
    artifact.write(
        directory,
        direct,
        checkpoint,
        converted.card,
        converted.head,
        converted.precision,
        winograd=fewer,
        expected=converted.expected,
    )


__all__ = ["ConversionError", "convert", "load", "write"]
