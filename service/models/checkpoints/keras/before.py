"""Preprocessing inside a Keras model: the layers before its network, as `Preprocessing`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from service.errors import CheckpointError
from service.models.checkpoints.keras.graph import Leaf
from service.preprocess import Preprocessing

Triple = tuple[float, float, float]

#: Forms of `keras.applications.*.preprocess_input` within a model: the classes of its operations in Keras 3 and 2,
#: and numbers among their arguments.
_ARITHMETIC: tuple[tuple[str, tuple[list[str], ...], tuple[str, ...]], ...] = (
    ("caffe", (["GetItem"] * 3 + ["Stack", "Add"], ["SlicingOpLambda", "TFOpLambda"]), ("-103.93",)),
    ("imagenet", (["TrueDivide", "Add", "TrueDivide"], ["TFOpLambda"] * 3), ("255", "-0.485", "0.229")),
    ("tf", (["TrueDivide", "Subtract"], ["TFOpLambda"] * 2), ("127.5", "1.0")),
)


def arithmetic(before: list[Leaf]) -> str | None:
    """Returns the scale of pixels that these layers compute by plain arithmetic; None if they are anything else."""
    kinds, calls = [leaf.kind for leaf in before], " ".join(leaf.call for leaf in before)
    for name, orders, numbers in _ARITHMETIC:
        if kinds in orders and all(number in calls for number in numbers):
            return name
    return None


def resized(preprocessing: Preprocessing, before: list[Leaf]) -> Preprocessing:
    """Returns the preprocessing with the fit and interpolation of a Resizing layer, if there is one."""
    resizing = next((leaf.config or {} for leaf in before if leaf.kind == "Resizing"), None)
    if resizing is None:
        return preprocessing
    if resizing.get("crop_to_aspect_ratio"):
        return preprocessing
    fit = "pad-resize" if resizing.get("pad_to_aspect_ratio") else "stretch"
    interpolation = str(resizing.get("interpolation", "bilinear"))
    return replace(
        preprocessing, fit=fit, interpolation=interpolation, antialias=bool(resizing.get("antialias", False))
    )


def scaled(before: list[Leaf], name: str) -> tuple[Triple, Triple] | None:
    """Returns mean and deviation of pixels in [0, 1] from the layers before the network; None without such layers."""
    scale, offset, any_scale = [1.0] * 3, [0.0] * 3, False
    for leaf in before:
        config = leaf.config
        if leaf.kind == "Resizing":
            continue
        if leaf.kind == "Rescaling":
            if config is None:
                factor, shift = [1 / 255] * 3, [0.0] * 3
            else:
                factor, shift = (
                    _triple(config.get("scale", 1.0), name),
                    _triple(config.get("offset", 0.0), name),
                )
        elif leaf.kind == "Normalization" and config is not None:
            factor, shift = _normalization(leaf, name)
        else:
            raise CheckpointError(
                f"'{name}' has a layer '{leaf.name}' ({leaf.kind}) before its network that is not known here; save the "
                "model without it and say with ?preprocessing= what it did (raw, unit, tf, imagenet or caffe)"
            )
        any_scale = True
        scale = [a * b for a, b in zip(scale, factor, strict=True)]
        offset = [a * b + c for a, b, c in zip(offset, factor, shift, strict=True)]
    if not any_scale:
        return None
    if min(scale) <= 0:
        raise CheckpointError(f"'{name}' inverts its pixels before its network, which cannot be served")
    # x * scale + offset = (x / 255 - mean) / std
    std = [1 / (255 * value) for value in scale]
    mean = [-shift * deviation for shift, deviation in zip(offset, std, strict=True)]
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _triple(value: Any, name: str) -> list[float]:
    values = value if isinstance(value, list) else [value]
    try:
        numbers = [float(number) for number in (values * 3 if len(values) == 1 else values)]
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"'{name}' scales its pixels by a value that is no number") from error
    if len(numbers) != 3 or not all(math.isfinite(number) for number in numbers):
        raise CheckpointError(f"'{name}' scales its pixels by {len(numbers)} numbers and not by one or three")
    return numbers


def _normalization(leaf: Leaf, name: str) -> tuple[list[float], list[float]]:
    """Returns factor and shift of `keras.layers.Normalization`: ``(x - mean) / max(sqrt(variance), epsilon)``."""
    config = leaf.config or {}
    mean, variance = config.get("mean"), config.get("variance")
    if mean is None and 0 in leaf.arrays and 1 in leaf.arrays:
        mean, variance = (leaf.arrays[number].reshape(-1).tolist() for number in (0, 1))
    if mean is None or variance is None or config.get("invert"):
        raise CheckpointError(
            f"the layer '{leaf.name}' of '{name}' has no statistics; save the model after adapt()"
        )
    factor = [1 / max(math.sqrt(value), 1e-7) for value in _triple(variance, name)]
    return factor, [-value * one for value, one in zip(_triple(mean, name), factor, strict=True)]
