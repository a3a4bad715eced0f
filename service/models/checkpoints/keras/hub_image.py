"""Turns KerasHub's ``ImageConverter`` into `Preprocessing`.

A converter crops (or pads, or stretches) to the shape of ``image_size``, resizes without antialiasing by default, and
computes ``pixel * scale + offset`` on pixels from 0 to 255.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from service.errors import CheckpointError
from service.models.checkpoints.folder import Folder
from service.models.configuration import Configuration, VGGConfig
from service.models.head import KERNEL
from service.preprocess import Preprocessing

_log = logging.getLogger(__name__)

Size = tuple[int, int]

#: Image size of KerasHub's own presets, for a preset that fixes no size.
_DEFAULT_SIZE = (224, 224)


def image_converter(
    folder: Folder, task: dict[str, Any] | None, configuration: Configuration, image_size: Size | None
) -> Preprocessing:
    """Returns the preprocessing of a preset. ``image_size`` is the size that its backbone is fixed to, or None.

    Raises `CheckpointError` for a preprocessing that is not supported or does not fit the network.
    """
    settings = _settings(folder, task)
    if settings is None:
        _log.warning(
            "%s says nothing of its preprocessing: images are cut to %s and normalised as for ImageNet",
            folder.name,
            image_size or _DEFAULT_SIZE,
        )
        return Preprocessing(crop=image_size or _DEFAULT_SIZE, antialias=False, fit="crop-resize")
    try:
        preprocessing = _preprocessing(settings, image_size or _DEFAULT_SIZE)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"the image converter of '{folder.name}' is not as KerasHub writes it"
        ) from error
    _refuse_misfit(folder.name, preprocessing.crop, configuration, image_size)
    return preprocessing


def _settings(folder: Folder, task: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns the converter's arguments from task.json, else preprocessor.json, else image_converter.json."""
    nested = _arguments((task or {}).get("preprocessor")) or _arguments(folder.json("preprocessor.json"))
    return _arguments((nested or {}).get("image_converter")) or _arguments(
        folder.json("image_converter.json")
    )


def _arguments(document: Any) -> dict[str, Any] | None:
    settings = document.get("config") if isinstance(document, dict) else None
    return settings if isinstance(settings, dict) else None


def _preprocessing(settings: dict[str, Any], default_size: Size) -> Preprocessing:
    settings = _without_old_names(settings)
    height, width = settings.get("image_size") or default_size
    std = [1 / (255 * scale) for scale in _triple(settings.get("scale"), 1.0)]
    offset = _triple(settings.get("offset"), 0.0)
    return Preprocessing(
        crop=(int(height), int(width)),
        interpolation=settings.get("interpolation", "bilinear"),
        antialias=bool(settings.get("antialias", False)),
        mean=_exactly_three([-shift * deviation for shift, deviation in zip(offset, std, strict=True)]),
        std=_exactly_three(std),
        fit=_fit(settings),
    )


def _without_old_names(settings: dict[str, Any]) -> dict[str, Any]:
    """Translates presets of 2024, which store height, width, mean and variance (``ImageConverter.__init__`` reads
    them)."""
    settings = dict(settings)
    if "height" in settings and "width" in settings:
        settings["image_size"] = (settings["height"], settings["width"])
    if "mean" in settings and "variance" in settings:
        deviations = [math.sqrt(variance) for variance in settings["variance"]]
        settings["scale"] = [settings["scale"] / deviation for deviation in deviations]
        settings["offset"] = [
            -m / deviation for m, deviation in zip(settings["mean"], deviations, strict=True)
        ]
    return settings


def _fit(settings: dict[str, Any]) -> str:
    if settings.get("pad_to_aspect_ratio", False):
        return "pad-resize"
    return "crop-resize" if settings.get("crop_to_aspect_ratio", True) else "stretch"


def _triple(value: Any, default: float) -> list[float]:
    """Returns one number a channel from a single number, a list of one, or a list of three."""
    values = [default if value is None else value] if not isinstance(value, list) else value
    return [float(number) for number in (values * 3 if len(values) == 1 else values)]


def _exactly_three(values: list[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def _refuse_misfit(name: str, size: Size, configuration: Configuration, image_size: Size | None) -> None:
    if image_size is not None and size != image_size:
        raise CheckpointError(
            f"'{name}' converts images to {size[0]}x{size[1]} and its network takes "
            f"{image_size[0]}x{image_size[1]}; save the preset with one size"
        )
    if not isinstance(configuration, VGGConfig) or configuration.num_classes == 0:
        return
    if configuration.head == "valid" and min(configuration.map_size(size)) < KERNEL:
        raise CheckpointError(
            f"the head of '{name}' needs a map of {KERNEL}x{KERNEL} and images of "
            f"{size[0]}x{size[1]} give less; save the preset with a larger image_size"
        )
