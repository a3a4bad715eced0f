"""The setting ``models``: several models in one service, by name. The first is the default.

models=densenet121,vgg16          variants, with the weights that the setting ``weights`` names
models=/etc/models.json           {"cats": {"weights": "/models/cats.safetensors"}, "vgg16": {"model": "vgg16"}}
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from service import settings as all_settings
from service.errors import ConfigurationError
from service.models.catalog import VARIANTS
from service.options.nearest import did_you_mean, one_of
from service.settings import Settings

#: The largest number of models in one service; more are taken for a mistake.
MAX_MODELS = 16
#: The settings that a model may have of its own; all others are the service's.
OWN = (
    "model",
    "weights",
    "labels",
    "device",
    "precision",
    "runtime",
    "max_batch_size",
    "max_queue_delay_ms",
    "queue_capacity",
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
#: The largest JSON file, in bytes.
_MAX_FILE_BYTES = 1 << 20


class ModelEntry(NamedTuple):
    """A model to serve. ``name`` is None if it is called what its weights are called."""

    name: str | None
    settings: Settings


def models_of(settings: Settings) -> list[ModelEntry]:
    """All models of the settings, the default first. Raises `ConfigurationError`, one sentence."""
    if settings.models is None:
        return [ModelEntry(None, settings)]
    text = settings.models.strip()
    names = [item.strip() for item in text.split(",")]
    if all(name in VARIANTS for name in names):
        return _variants(names, settings)
    if len(names) > 1 and not Path(text).expanduser().exists():
        unknown = next(name for name in names if name not in VARIANTS)
        raise ConfigurationError(
            f"models: {unknown!r} is none of {one_of(list(VARIANTS))}{did_you_mean(unknown, VARIANTS)}"
        )
    return _in_file(Path(text).expanduser(), settings)


def _variants(names: list[str], settings: Settings) -> list[ModelEntry]:
    if len(set(names)) < len(names):
        raise ConfigurationError(
            "models: a name stands there twice; name two models of the same variant in a JSON file"
        )
    if len(names) > 1 and settings.weights != "pretrained" and not settings.weights.startswith("random"):
        raise ConfigurationError(
            f"weights={settings.weights} cannot be those of {len(names)} models; give models a JSON file with the "
            "weights of each"
        )
    return [ModelEntry(None, settings.model_copy(update={"model": name})) for name in names]


def _in_file(path: Path, settings: Settings) -> list[ModelEntry]:
    found = _read(path)
    if not isinstance(found, dict) or not found:
        raise ConfigurationError(f"models: '{path.name}' has to be a JSON object of names and their settings")
    if len(found) > MAX_MODELS:
        raise ConfigurationError(f"models: '{path.name}' has {len(found)} models; {MAX_MODELS} are allowed")
    return [_one(name, own, settings) for name, own in found.items()]


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        known = did_you_mean(str(path), VARIANTS)
        raise ConfigurationError(
            f"models: '{path}' is no list of variants, and no file that can be read: {error.strerror}{known}"
        ) from error
    if len(raw) > _MAX_FILE_BYTES:
        raise ConfigurationError(f"models: '{path.name}' is larger than {_MAX_FILE_BYTES >> 20} MiB")
    try:
        return json.loads(raw, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"models: '{path.name}' is no JSON: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The JSON object of ``pairs``. Raises `ValueError` for a repeated name."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, _ in pairs if [one for one, _ in pairs].count(name) > 1)
        raise ValueError(f"{twice!r} is there twice")
    return found


def _one(name: str, own: Any, settings: Settings) -> ModelEntry:
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"models: {name[:100]!r} is no name: letters, digits, dots, dashes and underscores"
        )
    if not isinstance(own, dict):
        raise ConfigurationError(f"models: {name} has to have an object of settings, such as {{}}")
    for key in own:
        if key not in OWN:
            raise ConfigurationError(
                f"models: {name} has {key!r}, which is no setting of one model{did_you_mean(key, OWN)}"
            )
    try:
        merged = all_settings.read({**settings.model_dump(), **own}, spelled=str)
    except ConfigurationError as error:
        raise ConfigurationError(f"models: {name}: {error}") from error
    return ModelEntry(name, merged)
