"""Temperature scaling (Guo et al., arXiv:1706.04599): one number that calibrates softmax's probabilities.

The logits are divided by the temperature. Their order stays, and so do top-1 and top-5. The temperature is the one that
maximises the likelihood of the true classes. It is folded into the last layer, so that it costs no time.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.errors import ConfigurationError
from service.models.head import Activate, Linear, Weighted, key
from service.models.named_heads import layers_of

if TYPE_CHECKING:
    from service.models.checkpoints import Checkpoint

#: The interval that is searched. A network that needs a temperature outside it has other faults.
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 0.05, 20.0
#: The relative accuracy of the search; photos determine a temperature to some percent only.
_ACCURACY = 1e-4
#: The number of photos whose softmax is in memory at the same time.
_ROWS = 4096
#: Activations f with f(c·x) = c·f(x) for c > 0: a temperature can be applied before them.
_HOMOGENEOUS = ("linear", "relu", "leaky_relu")


def fitted(logits: NDArray[np.float32], truths: NDArray[np.intp]) -> float:
    """The temperature for ``logits``, float32 ``[images, classes]``, whose true columns are ``truths``.

    The likelihood has one maximum over 1 / temperature; bisection finds where its slope is 0. Raises
    `ConfigurationError` if there is none: all answers are right, or hardly more than by chance.
    """
    low, high = math.log(_MIN_TEMPERATURE), math.log(_MAX_TEMPERATURE)
    if _slope(logits, truths, _MIN_TEMPERATURE) <= 0 or _slope(logits, truths, _MAX_TEMPERATURE) >= 0:
        raise ConfigurationError(
            f"these {len(truths):,} photos determine no temperature between {_MIN_TEMPERATURE} and {_MAX_TEMPERATURE}: "
            "the model is right about all of them, or hardly better than chance; give more photos of the kind that will"
            " be served"
        )
    while high - low > _ACCURACY:
        middle = (low + high) / 2
        if _slope(logits, truths, math.exp(middle)) > 0:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def _slope(logits: NDArray[np.float32], truths: NDArray[np.intp], temperature: float) -> float:
    """The derivative of the mean negative log-likelihood by 1 / ``temperature``; positive: over-confident answers."""
    total = 0.0
    for start in range(0, len(logits), _ROWS):
        rows = logits[start : start + _ROWS].astype(np.float64)
        true = rows[np.arange(len(rows)), truths[start : start + _ROWS]]
        total += float(((softmax(rows / temperature) * rows).sum(axis=1) - true).sum())
    return total / len(logits)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Softmax along the last axis, without overflow."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return result


def folded(checkpoint: Checkpoint, temperature: float) -> Checkpoint:
    """The checkpoint with its logits divided by ``temperature``, in the dtypes that its arrays have.

    The division goes into the head's last layer with arrays. If an activation follows that is not homogeneous, such as
    tanh, the head gets one more layer instead. Raises `ConfigurationError` for a checkpoint whose probabilities are no
    softmax of its logits.
    """
    require_softmax(checkpoint)
    for layer in reversed(layers_of(checkpoint.configuration)):
        if isinstance(layer, Weighted):
            return _scaled(checkpoint, key(layer), temperature)
        if isinstance(layer, Activate) and layer.by not in _HOMOGENEOUS:
            break
    return _lengthened(checkpoint, temperature)


def _scaled(checkpoint: Checkpoint, prefix: str, temperature: float) -> Checkpoint:
    arrays = dict(checkpoint.state_dict)
    for name in (f"{prefix}weight", f"{prefix}bias"):
        if name in arrays:
            arrays[name] = (arrays[name].float() / temperature).to(arrays[name].dtype)
    return replace(checkpoint, state_dict=arrays, sha256=None)


def _lengthened(checkpoint: Checkpoint, temperature: float) -> Checkpoint:
    """Adds a last dense layer that divides its inputs by ``temperature``."""
    import torch

    layers = layers_of(checkpoint.configuration)
    classes = checkpoint.configuration.num_classes
    number = 1 + max((int(layer.name) for layer in layers if isinstance(layer, Weighted)), default=-1)
    last = Linear(str(number), classes, classes, bias=False)
    configuration = replace(checkpoint.configuration, layers=(*layers, last))
    arrays = {**checkpoint.state_dict, f"{key(last)}weight": torch.eye(classes) / temperature}
    return replace(checkpoint, configuration=configuration, state_dict=arrays, sha256=None)


def require_softmax(checkpoint: Checkpoint) -> None:
    """Raises `ConfigurationError` for a checkpoint without classes, or whose activation is not softmax."""
    if checkpoint.classes is None:
        raise ConfigurationError(f"{checkpoint.name} is a network without classes; it has no probabilities")
    if checkpoint.activation != "softmax":
        raise ConfigurationError(
            f"{checkpoint.name} has the activation {checkpoint.activation}; a temperature is for softmax"
        )
