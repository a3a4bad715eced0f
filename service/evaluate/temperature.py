"""Temperature scaling (Guo et al., arXiv:1706.04599): one number that makes softmax's probabilities mean something.

Logits divided by it have the same order, so top-1 and top-5 stay. It is where the likelihood of the true classes
is the largest, and it goes into the last layer: a model with it costs nothing more.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.errors import ConfigurationError

if TYPE_CHECKING:
    from service.models.checkpoints import Checkpoint

#: Between them a temperature is looked for. A network beyond them has other troubles.
_LEAST, _MOST = 0.05, 20.0
#: Relative accuracy that it is found with; photos tell it no better than to some percent.
_ACCURACY = 1e-4
#: Photos whose softmax is in memory at once.
_ROWS = 4096
#: torchvision's names of the layer whose output are the logits: DenseNet's, and VGG's last of several.
_LAST_LAYER = re.compile(r"classifier(?:\.(\d+))?\.(weight|bias)")


def fitted(logits: NDArray[np.float32], truths: NDArray[np.intp]) -> float:
    """The temperature for ``logits``, float32 ``[images, classes]``, whose true columns are ``truths``.

    The likelihood has one maximum over 1 / temperature, where its slope is 0: found by bisection. Raises
    `ConfigurationError` where there is none: images that are all right, or no more often than by chance.
    """
    low, high = math.log(_LEAST), math.log(_MOST)
    if _slope(logits, truths, _LEAST) <= 0 or _slope(logits, truths, _MOST) >= 0:
        raise ConfigurationError(
            f"these {len(truths):,} photos tell no temperature between {_LEAST} and {_MOST}: the model is right "
            "about all of them, or hardly better than chance; give more of the kind that will be served"
        )
    while high - low > _ACCURACY:
        middle = (low + high) / 2
        if _slope(logits, truths, math.exp(middle)) > 0:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def _slope(logits: NDArray[np.float32], truths: NDArray[np.intp], temperature: float) -> float:
    """Of the mean negative log-likelihood over 1 / ``temperature``: positive where the answers are too sure."""
    total = 0.0
    for start in range(0, len(logits), _ROWS):
        rows = logits[start : start + _ROWS].astype(np.float64)
        true = rows[np.arange(len(rows)), truths[start : start + _ROWS]]
        total += float(((softmax(rows / temperature) * rows).sum(axis=1) - true).sum())
    return total / len(logits)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return result


def folded(checkpoint: Checkpoint, temperature: float) -> Checkpoint:
    """The checkpoint with its logits divided by ``temperature``, in the same number formats.

    Raises `ConfigurationError` for a checkpoint whose answers are no softmax of logits.
    """
    require_softmax(checkpoint)
    places = {key: match for key in checkpoint.state_dict if (match := _LAST_LAYER.fullmatch(key))}
    last = max(int(match[1] or 0) for match in places.values())
    scaled = {
        key: (tensor.float() / temperature).to(tensor.dtype)
        for key, tensor in checkpoint.state_dict.items()
        if key in places and int(places[key][1] or 0) == last
    }
    return replace(checkpoint, state_dict={**checkpoint.state_dict, **scaled}, sha256=None)


def require_softmax(checkpoint: Checkpoint) -> None:
    """Raises `ConfigurationError` where a temperature would mean nothing."""
    if checkpoint.classes is None:
        raise ConfigurationError(f"{checkpoint.name} is a network without classes; it has no probabilities")
    if checkpoint.activation != "softmax":
        raise ConfigurationError(
            f"{checkpoint.name} has the activation {checkpoint.activation}; a temperature is for softmax"
        )
