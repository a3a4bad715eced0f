"""Quantises an OpenVINO model to 8-bit integers, except the layers that must keep their floats.

NNCF's post-training quantisation calibrates the range of each activation with images. Weights and activations become
integers, which processors with VNNI or AMX multiply several times as fast. The loss is not spread evenly. A dense
layer adds a few channels to many, and its errors drown. But everything passes the stem, the layers between the blocks
and the classifier. So there are several recipes, each slower and closer to fp32 than the one before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.errors import ConfigurationError
from service.host.extras import install_command

_LAYERS = ("Convolution", "MatMul")
#: Types of poolings and of batch norms after a concatenation: as integers they round once more and save only memory.
_BETWEEN_LAYERS = ("Multiply", "AvgPool", "ReduceMean")


class QuantizationRecipe(NamedTuple):
    """A choice of layers that stay in fp32."""

    fp32: str
    """Description in words."""
    layers: tuple[str, ...] = ()
    """Names of operations."""
    kinds: tuple[str, ...] = ()
    """Types of operations."""


def recipes(model: Any) -> Iterator[QuantizationRecipe]:
    """Yields recipes for a model from `prepared`, the fastest first."""
    yield QuantizationRecipe("nothing")
    layers = [operation for operation in model.get_ordered_ops() if operation.get_type_name() in _LAYERS]
    ends = (layers[0].get_friendly_name(), layers[-1].get_friendly_name())
    yield QuantizationRecipe("norms, poolings, first and last layer", ends, _BETWEEN_LAYERS)
    transitions = tuple(layer.get_friendly_name() for layer in layers if "AvgPool" in _readers(layer))
    if transitions:
        words = "norms, poolings, first and last layer, transitions"
        yield QuantizationRecipe(words, (*ends, *transitions), _BETWEEN_LAYERS)


def prepared(model: Any) -> Any:
    """Returns a copy with each batch norm folded into the convolution before it; NNCF would round both separately."""
    from openvino._offline_transformations import apply_moc_transformations

    copy = model.clone()
    # OpenVINO's own `openvino.convert_model` ends with these transformations.
    apply_moc_transformations(copy, cf=False, smart_reshape=False)
    return copy


def quantised(model: Any, images: Sequence[NDArray[np.uint8]], recipe: QuantizationRecipe) -> Any:
    """Returns an int8 copy of a `prepared` model, calibrated with these images, each uint8 ``[H, W, 3]``."""
    nncf, estimators = tools(), import_module("nncf.quantization.range_estimator")
    return nncf.quantize(
        model.clone(),
        nncf.Dataset(images, lambda image: image[None]),
        subset_size=len(images),
        # Signed activations, such as those before a concatenation, keep their zero point.
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(names=[*recipe.layers], types=[*recipe.kinds], validate=False),
        fast_bias_correction=False,
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            # The range with the least loss, from each activation's histogram. On the demo model it halves the loss of
            # the default (the mean of each image's extremes).
            activations_range_estimator_params=estimators.RangeEstimatorParametersSet.HISTOGRAM
        ),
    )


def tools() -> ModuleType:
    """Imports NNCF. Raises `ConfigurationError` if it is not installed."""
    try:
        import_module("service.models.openvino_import")  # first, so that NNCF sends no telemetry either
        nncf = import_module("nncf")
    except ImportError as error:
        raise ConfigurationError(
            f"quantize needs {error.name}; {install_command('quantize')} brings it"
        ) from error
    nncf.set_log_level(logging.WARNING)  # without this it lists every operation that stays in fp32
    return nncf


def _readers(operation: Any) -> set[str]:
    """Returns the types of the operations that read this one's output, after its bias."""
    found: set[str] = set()
    for target in operation.output(0).get_target_inputs():
        reader = target.get_node()
        kind = reader.get_type_name()
        found |= _readers(reader) if kind == "Add" else {kind}
    return found
