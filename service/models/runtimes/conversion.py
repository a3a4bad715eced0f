"""Converts a torch module to an OpenVINO model with the same numbers."""

from __future__ import annotations

from torch import nn

from service.models import canary
from service.models.loader import Uint8Model
from service.models.openvino_import import openvino
from service.models.runtimes import translation


class ConversionError(Exception):
    """The model cannot be converted, or the converted one gives other answers."""


def convert(
    model: Uint8Model,
    image: tuple[int, int, int],
    *,
    has_head: bool = True,
    features: nn.Module | None = None,
    expected: canary.Logits | None = None,
) -> openvino.Model:
    """Converts uint8 ``[N, H, W, 3]`` for any N → features ``[N, C, h, w]`` and, with a head, logits ``[N,
    classes]``.

    ``features`` replaces the network's own feature layers. The result is compared with ``expected``, the network's
    answers to the canaries, which are computed if they are not given.

    The result normalises its input; it shares the weights of ``model`` and keeps them alive. Raises
    `ConversionError`.
    """
    if expected is None:
        expected = canary.expected(model, image, has_head=has_head)
    try:
        converted = translation.network(model, image, has_head=has_head, features=features)
        answers = _answers(converted, image, has_head=has_head)
    except (RuntimeError, TypeError) as error:
        raise ConversionError(str(error).splitlines()[-1]) from error
    for answer, right in zip(answers, expected, strict=True):
        if not canary.is_right(answer, right, "fp32"):
            away = canary.distance(answer, right)
            raise ConversionError(f"its answers differ from torch's by {away:.2g}")
    return converted


def _answers(
    converted: openvino.Model, image: tuple[int, int, int], *, has_head: bool
) -> list[canary.Logits]:
    """Returns the converted model's answers to the canaries, as `canary.expected` returns the network's."""
    compiled = openvino.Core().compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    last = [compiled(one[None])[len(compiled.outputs) - 1][0].copy() for one in canary.images(image)]
    return last if has_head else [features.mean((1, 2)) for features in last]
