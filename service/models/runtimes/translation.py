"""Translates layers of a torch module to operations of OpenVINO, one by one, with the module's own arrays.

`network` walks the network's modules in order; each kind of layer has a function below. OpenVINO's frontend makes the
same graph from a trace by torch, but takes three seconds of CPU longer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import singledispatch
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.models import gradients, loader
from service.models.densenet import DenseBlock, DenseLayer, DenseNet
from service.models.head import (
    Activate,
    Adapt,
    Convolution,
    Flatten,
    Layer,
    Linear,
    Norm,
    Pool,
    Pooling,
    Weighted,
    key,
)
from service.models.loader import Uint8Model
from service.models.openvino_import import openvino
from service.models.runtimes import winograd
from service.models.stems import BlurPool2d, SameConv2d, SameMaxPool2d

#: A value in a graph. OpenVINO has no types for a type checker.
Node = Any

_ops, _first = openvino.opset13, openvino.opset1


def network(
    model: Uint8Model, image: tuple[int, int, int], *, has_head: bool, features: nn.Module | None
) -> openvino.Model:
    """Translates uint8 ``[N, H, W, 3]`` for any N → features ``[N, C, h, w]`` and, with a head, logits ``[N,
    classes]``.

    ``features`` replaces the network's own feature layers. The graph shares the arrays of ``model``. Raises TypeError
    for an unsupported layer.
    """
    pixels = _ops.parameter(openvino.PartialShape([-1, *image]), np.uint8, name="pixels")
    last = layer(features or model.network.features, _normalised(model, pixels, image))
    if isinstance(model.network, DenseNet):
        last = _ops.relu(last)
    results = [last]
    if has_head:
        state, value = model.network.state_dict(), last
        for each in model.network.layers:
            value = _head(each, value, state)
        results.append(value)
    return openvino.Model([_ops.result(value) for value in results], [pixels], "imagenet-serve")


def _normalised(model: Uint8Model, pixels: Node, image: tuple[int, int, int]) -> Node:
    """Translates `Uint8Model.normalise`, which works on lines: vectors need a longer axis than the channels."""
    _, width, channels = image
    if model.channels == 1 and channels == 3:
        pixels, channels = _grey(pixels), 1
    if channels != model.channels:
        raise TypeError(f"a network of {model.channels} channels")
    lines = _ops.convert(_reshaped(pixels, 0, 0, -1), np.float32)
    scaled = _ops.divide(lines, np.float32(255))
    centred = _ops.subtract(scaled, _constant(model.mean.repeat(width)))
    normalised = _ops.divide(centred, _constant(model.std.repeat(width)))
    return _ops.transpose(_reshaped(normalised, 0, 0, width, channels), np.array([0, 3, 1, 2]))


def _grey(pixels: Node) -> Node:
    """Translates `service.models.loader.grey`: int32 ``[N, H, W, 1]``."""
    weighted = _ops.multiply(_ops.convert(pixels, np.int32), np.array(loader.LUMA, np.int32))
    luma = _ops.add(_ops.reduce_sum(weighted, np.array([3]), keep_dims=True), np.int32(loader.LUMA_HALF))
    return openvino.opset15.bitwise_right_shift(luma, np.array([loader.LUMA_BITS], np.int32))


@singledispatch
def layer(module: nn.Module, x: Node) -> Node:
    """Returns the output of ``module`` for ``x``. Raises TypeError for an unsupported kind."""
    raise TypeError(f"no translation of {type(module).__name__}")


@layer.register
def _(module: nn.Sequential, x: Node) -> Node:
    for child in module:
        x = layer(child, x)
    return x


@layer.register(nn.Identity)
@layer.register(nn.Dropout)
def _(_: nn.Module, x: Node) -> Node:
    return x


@layer.register
def _(_: nn.ReLU, x: Node) -> Node:
    return _ops.relu(x)


@layer.register
def _(module: nn.Conv2d, x: Node) -> Node:
    margins = [int(side) for side in module.padding]
    return _convolved(module, x, margins, margins)


@layer.register
def _(module: SameConv2d, x: Node) -> Node:
    return _convolved(module, x, *_same(x, module.kernel_size[0], module.stride[0]))


def _convolved(module: nn.Conv2d, x: Node, begin: list[int], end: list[int]) -> Node:
    assert module.groups == 1
    y = _ops.convolution(
        x, _constant(module.weight), [*module.stride], begin, end, [int(side) for side in module.dilation]
    )
    return y if module.bias is None else _ops.add(y, _constant(module.bias.view(1, -1, 1, 1)))


@layer.register
def _(module: nn.BatchNorm2d, x: Node) -> Node:
    assert module.running_mean is not None
    assert module.running_var is not None
    arrays = (module.weight, module.bias, module.running_mean, module.running_var)
    return _ops.batch_norm_inference(x, *map(_constant, arrays), module.eps)


@layer.register
def _(module: nn.MaxPool2d, x: Node) -> Node:
    margins = _pair(module.padding)
    return _first.max_pool(x, _pair(module.stride), margins, margins, _pair(module.kernel_size))


@layer.register
def _(module: SameMaxPool2d, x: Node) -> Node:
    begin, end = _same(x, module.kernel_size, module.stride)
    return _first.max_pool(x, _pair(module.stride), begin, end, _pair(module.kernel_size))


@layer.register
def _(module: nn.AvgPool2d, x: Node) -> Node:
    return _averaged(x, _pair(module.kernel_size), _pair(module.stride))


@layer.register
def _(_: BlurPool2d, x: Node) -> Node:
    margins = np.array([0, 0, 1, 1])
    padded = _ops.pad(x, margins, margins, "reflect")
    return _averaged(_averaged(padded, [2, 2], [1, 1]), [2, 2], [2, 2])


@layer.register
def _(module: DenseBlock, x: Node) -> Node:
    maps = [x]
    for each in module.values():
        maps.append(layer(each, _joined(maps)))
    return _joined(maps)


@layer.register
def _(module: DenseLayer, x: Node) -> Node:
    for child in (module.norm1, module.relu1, module.conv1, module.norm2, module.relu2, module.conv2):
        x = layer(child, x)
    return x


@layer.register
def _(_: winograd.Swap, x: Node) -> Node:
    return _ops.transpose(x, np.array([2, 3, 0, 1]))


@layer.register
def _(module: winograd.WinogradMaxPool2d, x: Node) -> Node:
    for axis, size in enumerate((module.height, module.width)):
        x = _ops.maximum(_sliced(x, 0, size, axis, step=2), _sliced(x, 1, size, axis, step=2))
    return x


@layer.register
def _(module: winograd.WinogradConv2d, x: Node) -> Node:
    x = _reshaped(x, 0, -1)
    strips = [_strip(module, strip, x) for strip in module.strips]
    return strips[0] if len(strips) == 1 else _ops.concat(strips, 0)


def _strip(module: winograd.WinogradConv2d, strip: winograd.Strip, x: Node) -> Node:
    """Translates `winograd.WinogradConv2d.strip`, whose comments name the axes."""
    size, width, tiles = winograd.IN, module.width, module.tiles
    channels, filters = module.filters.shape[2:]
    along = size * strip.tiles
    y = _product(_constant(strip.inputs), _sliced(x, strip.first, strip.stop, 0))
    y = _product(_constant(module.columns), _reshaped(y, 1, along, width, -1))
    y = _product(_reshaped(y, size, size, -1, channels), _constant(module.filters))
    y = _product(_constant(strip.outputs), _reshaped(y, size, along, -1))
    y = _ops.transpose(_reshaped(y, size, strip.rows, tiles, -1), np.array([1, 0, 2, 3]))
    y = _product(_constant(module.back), _reshaped(y, strip.rows, size * tiles, -1))
    return _ops.add(_reshaped(y, strip.rows, width, -1, filters), _constant(module.bias))


def _head(each: Layer, x: Node, state: Mapping[str, Tensor]) -> Node:
    """Translates a layer of the head as `service.models.heads` applies it. ``state`` holds its arrays."""
    match each:
        case Adapt():
            return _adapted(x, each)
        case Pool():
            return _pooled(x, each.by)
        case Flatten():
            return _reshaped(x, 0, -1)
        case Activate():
            return _ACTIVATIONS[each.by](x, each.slope)
        case Norm():
            names = ("weight", "bias", "running_mean", "running_var")
            arrays = [_constant(state[key(each) + name]) for name in names]
            return _ops.batch_norm_inference(x, *arrays, each.epsilon)
        case Linear():
            y = _ops.matmul(x, _constant(state[key(each) + "weight"]), False, True)
            return _biased(y, each, state, -1)
        case Convolution():
            kernel = state[key(each) + "weight"].view(each.outputs, -1, each.kernel, each.kernel)
            margins = _pair(each.padding)
            y = _ops.convolution(x, _constant(kernel), [1, 1], margins, margins, [1, 1])
            return _biased(y, each, state, -1, 1, 1)


def _biased(y: Node, each: Weighted, state: Mapping[str, Tensor], *shape: int) -> Node:
    bias = state.get(key(each) + "bias")
    return y if bias is None else _ops.add(y, _constant(bias.view(1, *shape)))


def _adapted(x: Node, each: Adapt) -> Node:
    given = _sides(x)
    wanted = [max(pair) for pair in zip(each.size, given, strict=True)] if each.enlarge else [*each.size]
    if wanted == given:
        return x
    down, across = (gradients.averaging(*pair) for pair in zip(wanted, given, strict=True))
    return _product(_product(down, x), across.T.copy())


def _pooled(x: Node, by: Pooling) -> Node:
    axes = np.array([2, 3])
    mean, largest = _ops.reduce_mean(x, axes), _ops.reduce_max(x, axes)
    match by:
        case "avg":
            return mean
        case "max":
            return largest
        case "avgmax":
            return _ops.multiply(_ops.add(mean, largest), np.float32(0.5))
        case "catavgmax":
            return _ops.concat([mean, largest], 1)
        case "catmaxavg":
            return _ops.concat([largest, mean], 1)


#: Functions of a value and the slope of its layer.
_ACTIVATIONS: Mapping[str, Callable[[Node, float], Node]] = {
    "linear": lambda x, _: x,
    "relu": lambda x, _: _ops.relu(x),
    "relu6": lambda x, _: _ops.clamp(x, 0.0, 6.0),
    "leaky_relu": lambda x, slope: _ops.prelu(x, np.array([slope], np.float32)),
    "elu": lambda x, slope: _ops.elu(x, slope),
    "selu": lambda x, _: _ops.selu(x, np.float32(gradients.SELU_ALPHA), np.float32(gradients.SELU_SCALE)),
    "gelu": lambda x, _: _ops.gelu(x, "erf"),
    "gelu_tanh": lambda x, _: _ops.gelu(x, "tanh"),
    "silu": lambda x, _: _ops.swish(x),
    "hard_swish": lambda x, _: _ops.hswish(x),
    "mish": lambda x, _: _ops.mish(x),
    "softplus": lambda x, _: _ops.softplus(x),
    "sigmoid": lambda x, _: _ops.sigmoid(x),
    "tanh": lambda x, _: _ops.tanh(x),
    "softmax": lambda x, _: _ops.softmax(x, 1),
}


def _constant(tensor: Tensor) -> Node:
    array: NDArray[Any] = tensor.detach().to(torch.float32).contiguous().numpy()
    return _ops.constant(array, shared_memory=True)


def _product(a: Node, b: Node) -> Node:
    return _ops.matmul(a, b, False, False)


def _reshaped(x: Node, *shape: int) -> Node:
    """Reshapes; 0 keeps the size of that axis, and -1 takes what is left."""
    return _ops.reshape(x, np.array(shape), special_zero=True)


def _sliced(x: Node, start: int, stop: int, axis: int, *, step: int = 1) -> Node:
    return _ops.slice(x, *(np.array([number]) for number in (start, stop, step, axis)))


def _joined(maps: list[Node]) -> Node:
    return maps[0] if len(maps) == 1 else _ops.concat(maps, 1)


def _averaged(x: Node, kernel: list[int], stride: list[int]) -> Node:
    return _first.avg_pool(x, stride, [0, 0], [0, 0], kernel, exclude_pad=False)


def _same(x: Node, kernel: int, stride: int) -> tuple[list[int], list[int]]:
    """Returns TensorFlow's "same" padding before and after each side (`service.models.stems`)."""
    totals = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in _sides(x)]
    return [total // 2 for total in totals], [total - total // 2 for total in totals]


def _sides(x: Node) -> list[int]:
    """Returns height and width, which are fixed in every graph."""
    return [x.get_output_partial_shape(0)[axis].get_length() for axis in (2, 3)]


def _pair(value: int | tuple[int, int]) -> list[int]:
    return [value, value] if isinstance(value, int) else [*value]
