"""A torch module → an OpenVINO model of the same numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.jit._trace import TracerWarning

from service.models._openvino import openvino
from service.models.loader import Uint8Model

#: How far a converted model's logits may be from torch's, relative to the largest: rounding is 1e-5 and less.
_TOLERANCE = 1e-4


class ConversionError(Exception):
    """The converted model cannot be had, or does not say what the original says."""


def convert(
    model: Uint8Model,
    image: tuple[int, int, int],
    *,
    has_head: bool = True,
    features: Callable[[Tensor], Tensor] | None = None,
) -> openvino.Model:
    """uint8 ``[N, H, W, 3]`` of any N → features ``[N, C, h, w]`` and, with a head, logits ``[N, classes]``.

    ``features`` takes the place of ``model.forward_features``, which it is compared with.

    Normalising stays inside. The result keeps the weights of ``model`` alive and shares them. Raises
    `ConversionError`.

    This is what ``openvino.convert_model`` does, in a fifth of its time: a traced function carries its
    weights as constants, where a traced module wants a script class made for every layer; and the
    trace is compared with the original once, by its answers.
    """
    examples = torch.from_numpy(_probe(image))

    def through(features: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, ...]]:
        def both(pixels: Tensor) -> tuple[Tensor, ...]:
            last = features(pixels)
            return (last, model.forward_head(last)) if has_head else (last,)

        return both

    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    try:
        with tracing():
            traced = torch.jit.trace(
                through(features or model.forward_features), examples[:2], check_trace=False
            )
            decoder = TorchScriptPythonDecoder(traced)
        front_end = openvino.frontend.FrontEndManager().load_by_framework("pytorch")
        converted = front_end.convert(front_end.load(decoder))
        converted.inputs[0].get_node().set_element_type(openvino.Type.u8)
        converted.reshape(openvino.PartialShape([-1, *image]))
        with torch.inference_mode():
            expected = through(model.forward_features)(examples)[-1].numpy()
        _compare(converted, examples.numpy(), expected)
    except RuntimeError as error:
        raise ConversionError(str(error).splitlines()[-1]) from error
    return converted


def _probe(image: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Three images, and two for tracing: a number of images that had become a constant would show."""
    return np.random.default_rng(0).integers(0, 256, (3, *image), np.uint8)


@contextmanager
def tracing() -> Iterator[None]:
    """OpenVINO's frontend still reads what torch.jit.trace writes; torch calls that deprecated on each use."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        # What it warns of, shapes that become constants, is wanted: an image has one size here.
        warnings.filterwarnings("ignore", category=TracerWarning)
        yield


def _compare(converted: openvino.Model, examples: NDArray[np.uint8], expected: NDArray[np.float32]) -> None:
    """Raises `ConversionError` unless the converted model says what torch says."""
    compiled = openvino.Core().compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    got = compiled(examples)[len(compiled.outputs) - 1]
    allowed = _TOLERANCE * max(1.0, float(np.abs(expected).max()))
    difference = float(np.abs(got - expected).max())
    if not difference <= allowed:
        raise ConversionError(f"its answers differ from torch's by {difference:.2g}")
