"""A torch module → an OpenVINO model of the same numbers."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from service.models._openvino import openvino
from service.models.loader import Uint8Model
from service.models.runtimes import translation

#: How far a converted model's logits may be from torch's, relative to the largest: rounding is 1e-5 and less.
_TOLERANCE = 1e-4


class ConversionError(Exception):
    """The converted model cannot be had, or does not say what the original says."""


def convert(
    model: Uint8Model,
    image: tuple[int, int, int],
    *,
    has_head: bool = True,
    features: nn.Module | None = None,
) -> openvino.Model:
    """uint8 ``[N, H, W, 3]`` of any N → features ``[N, C, h, w]`` and, with a head, logits ``[N, classes]``.

    ``features`` takes the place of the network's own, which it is compared with.

    Normalising stays inside. The result keeps the weights of ``model`` alive and shares them. Raises
    `ConversionError`.
    """
    try:
        converted = translation.network(model, image, has_head=has_head, features=features)
        _compare(converted, model, _probe(image), has_head=has_head)
    except (RuntimeError, TypeError) as error:
        raise ConversionError(str(error).splitlines()[-1]) from error
    return converted


def _probe(image: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (2, *image), np.uint8)


def _compare(
    converted: openvino.Model, model: Uint8Model, images: NDArray[np.uint8], *, has_head: bool
) -> None:
    """Raises `ConversionError` unless the converted model says what torch says."""
    with torch.inference_mode():
        last = model.forward_features(torch.from_numpy(images))
        expected = (model.forward_head(last) if has_head else last).numpy()
    compiled = openvino.Core().compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    got = compiled(images)[len(compiled.outputs) - 1]
    allowed = _TOLERANCE * max(1.0, float(np.abs(expected).max()))
    difference = float(np.abs(got - expected).max())
    if not difference <= allowed:
        raise ConversionError(f"its answers differ from torch's by {difference:.2g}")
