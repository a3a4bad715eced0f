"""A torch module → an OpenVINO model of the same numbers."""

from __future__ import annotations

from torch import nn

from service.models import canary
from service.models.loader import Uint8Model
from service.models.openvino_import import openvino
from service.models.runtimes import translation


class ConversionError(Exception):
    """The converted model cannot be had, or does not say what the original says."""


def convert(
    model: Uint8Model,
    image: tuple[int, int, int],
    *,
    has_head: bool = True,
    features: nn.Module | None = None,
    expected: canary.Logits | None = None,
) -> openvino.Model:
    """uint8 ``[N, H, W, 3]`` of any N → features ``[N, C, h, w]`` and, with a head, logits ``[N, classes]``.

    ``features`` takes the place of the network's own. The result is compared with ``expected``, the network's own
    answer to the canary, which is computed where it is not given.

    Normalising stays inside. The result keeps the weights of ``model`` alive and shares them. Raises
    `ConversionError`.
    """
    if expected is None:
        expected = canary.expected(model, image, has_head=has_head)
    try:
        converted = translation.network(model, image, has_head=has_head, features=features)
        answer = _answer(converted, image, has_head=has_head)
    except (RuntimeError, TypeError) as error:
        raise ConversionError(str(error).splitlines()[-1]) from error
    if not canary.is_right(answer, expected, "fp32"):
        away = canary.distance(answer, expected)
        raise ConversionError(f"its answers differ from torch's by {away:.2g}")
    return converted


def _answer(converted: openvino.Model, image: tuple[int, int, int], *, has_head: bool) -> canary.Logits:
    """As `canary.expected`, by the converted model."""
    compiled = openvino.Core().compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    last: canary.Logits = compiled(canary.image(image)[None])[len(compiled.outputs) - 1][0]
    return last if has_head else last.mean((1, 2))
