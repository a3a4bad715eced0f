"""A head in NumPy: its logits, and the gradient of one logit with respect to the features. No torch.

A head is a chain of layers ``y = f(x)``. The gradient of a logit goes back through it, last layer first:

    dense layer, y = W x + b                  g ← Wᵀ g
    convolution                               g ← the sum over the kernel of its weights' transposes times g, shifted
    nonlinearity of each value, y = φ(x)      g ← φ'(x) · g
    softmax over channels                     g ← y · (g - Σ y g)
    mean over positions, adaptive averaging   g ← Aᵀ g, for y = A x
    largest over positions                    g ← g, shared by the positions that have it
    batch norm with fixed statistics          g ← g · weight / sqrt(var + epsilon)

`Head.gradients` starts with the class's row of the identity matrix. The tests compare it with torch's autograd on
`service.models.heads`: both are equal up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from service.models.head import (
    Activate,
    Adapt,
    Convolution,
    Flatten,
    Layer,
    Linear,
    Norm,
    Pool,
    Weighted,
    key,
)

Floats = NDArray[np.floating[Any]]

#: Maps the gradient with respect to a layer's output to that with respect to its input.
Back = Callable[[Floats], Floats]

SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805  # Klambauer et al., arXiv:1706.02515
_GELU_CUBIC = 0.044715  # Hendrycks and Gimpel, arXiv:1606.08415, the approximation by tanh
_SOFTPLUS_LINEAR = 20.0  # torch's threshold

_erf = np.vectorize(math.erf, otypes=[np.float32])


class Head:
    """A head: ``layers`` and their float32 arrays, by the names that `service.models.head` gives them."""

    def __init__(self, layers: Sequence[Layer], arrays: Mapping[str, Floats]) -> None:
        self.layers = tuple(layers)
        self.arrays = {name: arrays[name] for name in array_names(layers)}

    def logits(self, features: Floats) -> Floats:
        """Returns logits ``[N, classes]`` of features ``[N, C, h, w]``."""
        return self._forward(features)[0]

    def gradients(self, features: Floats, classes: Sequence[int]) -> Floats:
        """Returns the gradient of one logit an image (its index in ``classes``) with respect to features ``[N, C, h,
        w]``, as ``[N, C, h, w]``."""
        logits, backs = self._forward(features)
        gradient = np.zeros_like(logits)
        gradient[range(len(classes)), list(classes)] = 1
        for back in reversed(backs):
            gradient = back(gradient)
        return gradient

    def _forward(self, x: Floats) -> tuple[Floats, list[Back]]:
        backs = []
        for layer in self.layers:
            x, back = self._apply(layer, x)
            backs.append(back)
        return x, backs

    def _apply(self, layer: Layer, x: Floats) -> tuple[Floats, Back]:
        match layer:
            case Adapt():
                return _adapted(x, layer)
            case Pool():
                return _pooled(x, layer)
            case Flatten():
                return x.reshape(len(x), -1), lambda g: g.reshape(x.shape)
            case Linear():
                weight, bias = self._parameters(layer)
                return x @ weight.T + bias, lambda g: g @ weight
            case Convolution():
                weight, bias = self._parameters(layer)
                return _convolved(x, layer, weight, bias)
            case Norm():
                return self._normed(x, layer)
            case Activate():
                return _activated(x, layer)

    def _parameters(self, layer: Linear | Convolution) -> tuple[Floats, Floats | float]:
        prefix = key(layer)
        return self.arrays[prefix + "weight"], self.arrays[prefix + "bias"] if layer.bias else 0.0

    def _normed(self, x: Floats, layer: Norm) -> tuple[Floats, Back]:
        prefix = key(layer)
        weight, bias, mean, variance = (self.arrays[prefix + name] for name in _NORM)
        scale = weight / np.sqrt(variance + np.float32(layer.epsilon))
        return (x - mean) * scale + bias, lambda g: g * scale


_NORM = ("weight", "bias", "running_mean", "running_var")


def array_names(layers: Iterable[Layer]) -> list[str]:
    """Returns the names of all arrays of these layers."""
    return [key(layer) + name for layer in layers if isinstance(layer, Weighted) for name in _names(layer)]


def _names(layer: Weighted) -> tuple[str, ...]:
    if isinstance(layer, Norm):
        return _NORM
    return ("weight", "bias") if layer.bias else ("weight",)


def _adapted(x: Floats, layer: Adapt) -> tuple[Floats, Back]:
    height, width = layer.size
    if layer.enlarge:
        height, width = max(height, x.shape[2]), max(width, x.shape[3])
    down, across = averaging(height, x.shape[2]), averaging(width, x.shape[3])
    return down @ x @ across.T, lambda g: down.T @ g @ across


def averaging(outputs: int, inputs: int) -> Floats:
    """Returns the matrix ``[outputs, inputs]`` of adaptive averaging: output i is the mean from ⌊i·n/m⌋ to
    ⌈(i+1)·n/m⌉."""
    matrix = np.zeros((outputs, inputs), np.float32)
    for row in range(outputs):
        first, stop = row * inputs // outputs, -(-(row + 1) * inputs // outputs)
        matrix[row, first:stop] = 1 / (stop - first)
    return matrix


def _pooled(x: Floats, layer: Pool) -> tuple[Floats, Back]:
    channels, positions = x.shape[1], x.shape[2] * x.shape[3]
    mean, largest = x.mean((2, 3)), x.max((2, 3))

    def of_mean(g: Floats) -> Floats:
        spread: Floats = np.broadcast_to((g / positions)[:, :, None, None], x.shape)
        return spread

    def of_largest(g: Floats) -> Floats:
        here = (x == largest[:, :, None, None]).astype(np.float32)
        shared: Floats = here * (g / here.sum((2, 3)))[:, :, None, None]
        return shared

    match layer.by:
        case "avg":
            return mean, of_mean
        case "max":
            return largest, of_largest
        case "avgmax":
            return (mean + largest) / 2, lambda g: (of_mean(g) + of_largest(g)) / 2
        case "catavgmax":
            first, second, pair = of_mean, of_largest, (mean, largest)
        case "catmaxavg":
            first, second, pair = of_largest, of_mean, (largest, mean)
    return np.concatenate(pair, 1), lambda g: first(g[:, :channels]) + second(g[:, channels:])


def _convolved(x: Floats, layer: Convolution, weight: Floats, bias: Floats | float) -> tuple[Floats, Back]:
    count, channels, height, width = x.shape
    side, margin = layer.kernel, layer.padding
    padded = np.pad(x, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    windows = sliding_window_view(padded, (side, side), axis=(2, 3))  # [N, C, h', w', k, k]
    rows, columns = windows.shape[2:4]
    flat = windows.transpose(0, 2, 3, 1, 4, 5).reshape(count, rows, columns, -1)
    y = (flat @ weight.T + bias).transpose(0, 3, 1, 2)

    def back(g: Floats) -> Floats:
        whole = np.zeros_like(padded)
        spread = (g.transpose(0, 2, 3, 1) @ weight).reshape(count, rows, columns, channels, side, side)
        for i in range(side):
            for j in range(side):
                whole[:, :, i : i + rows, j : j + columns] += spread[..., i, j].transpose(0, 3, 1, 2)
        return whole[:, :, margin : margin + height, margin : margin + width]

    return y, back


def _activated(x: Floats, layer: Activate) -> tuple[Floats, Back]:
    if layer.by == "softmax":
        y = _softmax(x)
        return y, lambda g: y * (g - (y * g).sum(1, keepdims=True))
    y, slope = _PAIRS[layer.by](x, np.float32(layer.slope))
    return y.astype(np.float32), lambda g: (g * slope).astype(np.float32)


def _softmax(x: Floats) -> Floats:
    powers = np.exp(x - x.max(1, keepdims=True))
    result: Floats = powers / powers.sum(1, keepdims=True)
    return result


def _sigmoid(x: Floats) -> Floats:
    result: Floats = (0.5 * (1 + np.tanh(x / 2))).astype(np.float32)
    return result


def _leaky(x: Floats, slope: np.float32) -> tuple[Floats, Floats]:
    return np.where(x > 0, x, slope * x), np.where(x > 0, np.float32(1), slope)


def _exponential(x: Floats, alpha: np.float32, scale: float = 1.0) -> tuple[Floats, Floats]:
    powers = np.exp(np.minimum(x, 0))
    return scale * np.where(x > 0, x, alpha * (powers - 1)), scale * np.where(x > 0, 1, alpha * powers)


def _gelu(x: Floats, _: np.float32) -> tuple[Floats, Floats]:
    share = 0.5 * (1 + _erf(x / math.sqrt(2)))
    return x * share, share + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _gelu_tanh(x: Floats, _: np.float32) -> tuple[Floats, Floats]:
    inner = math.sqrt(2 / math.pi) * (x + _GELU_CUBIC * x**3)
    bent = np.tanh(inner)
    steep = math.sqrt(2 / math.pi) * (1 + 3 * _GELU_CUBIC * x * x)
    return 0.5 * x * (1 + bent), 0.5 * (1 + bent) + 0.5 * x * (1 - bent * bent) * steep


def _silu(x: Floats, _: np.float32) -> tuple[Floats, Floats]:
    share = _sigmoid(x)
    return x * share, share * (1 + x * (1 - share))


def _hard_swish(x: Floats, _: np.float32) -> tuple[Floats, Floats]:
    inside = np.abs(x) < 3
    return x * np.clip(x + 3, 0, 6) / 6, np.where(inside, (2 * x + 3) / 6, x > 0)


def _softplus(x: Floats, _: np.float32) -> tuple[Floats, Floats]:
    return np.where(x > _SOFTPLUS_LINEAR, x, np.logaddexp(0, x)), _sigmoid(x)


def _mish(x: Floats, _: np.float32) -> tuple[Floats, Floats]:
    bent = np.tanh(np.logaddexp(0, x))
    return x * bent, bent + x * (1 - bent * bent) * _sigmoid(x)


def _tanh(x: Floats, _: np.float32) -> tuple[Floats, Floats]:
    y = np.tanh(x)
    return y, 1 - y * y


def _by_sigmoid(x: Floats, _: np.float32) -> tuple[Floats, Floats]:
    y = _sigmoid(x)
    return y, y * (1 - y)


#: φ(x) and φ'(x) of each nonlinearity, as torch defines them.
_PAIRS: Mapping[str, Callable[[Floats, np.float32], tuple[Floats, Floats]]] = {
    "linear": lambda x, _: (x, np.ones_like(x)),
    "relu": lambda x, _: (np.maximum(x, 0), (x > 0).astype(np.float32)),
    "relu6": lambda x, _: (np.clip(x, 0, 6), ((x > 0) & (x < 6)).astype(np.float32)),
    "leaky_relu": _leaky,
    "elu": _exponential,
    "selu": lambda x, _: _exponential(x, np.float32(SELU_ALPHA), SELU_SCALE),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "hard_swish": _hard_swish,
    "mish": _mish,
    "softplus": _softplus,
    "sigmoid": _by_sigmoid,
    "tanh": _tanh,
}
