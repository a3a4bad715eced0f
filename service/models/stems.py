"""DenseNet stems: the layers before the first block, in the forms of torchvision, timm and Keras.

All use torchvision's parameter names ``conv0`` and ``norm0``; timm's deep stem goes on with ``conv1`` to ``norm2``.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from service.models.configuration import DenseNetConfig


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding: ceil(size / stride) outputs, the odd pixel at the end.

    torch pads both sides alike, so the results differ by a shift wherever the total is odd, as it is for 224.
    """

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(_pad_same(input, self.kernel_size[0], self.stride[0], 0.0))


class SameMaxPool2d(nn.Module):
    """A max-pool with TensorFlow's "same" padding. The padding is minus infinity, so it never wins."""

    def __init__(self, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride

    def forward(self, input: Tensor) -> Tensor:
        padded = _pad_same(input, self.kernel_size, self.stride, float("-inf"))
        return F.max_pool2d(padded, self.kernel_size, self.stride)


class BlurPool2d(nn.Module):
    """An antialiased pool (Zhang, "Making Convolutional Networks Shift-Invariant Again", arXiv:1904.11486), as in
    timm.

    It applies a 3x3 binomial filter with reflected borders and keeps every second pixel. The filter is computed as
    two 2x2 averages in a row, so no constant has to be stored in a file or on a device.
    """

    def forward(self, input: Tensor) -> Tensor:
        padded = F.pad(input, [1] * 4, mode="reflect")
        return F.avg_pool2d(F.avg_pool2d(padded, kernel_size=2, stride=1), kernel_size=2, stride=2)


def build_stem(configuration: DenseNetConfig) -> nn.Sequential:
    """Builds a stem: ``float [N, channels, H, W]`` → ``float [N, stem_width, H', W']``."""
    kernel, stride = configuration.stem_kernel, configuration.stem_stride
    convolution = _same_convolution if configuration.padding == "same" else _convolution
    widths = [*(configuration.deep_stem or ()), configuration.stem_width]
    stem, inputs = nn.Sequential(), configuration.channels
    for number, outputs in enumerate(widths):
        stem.add_module(f"conv{number}", convolution(inputs, outputs, kernel, stride if number == 0 else 1))
        stem.add_module(f"norm{number}", nn.BatchNorm2d(outputs))
        stem.add_module(f"relu{number}", nn.ReLU(inplace=True))
        inputs = outputs
    if configuration.stem_pool:
        stem.add_module("pool0", _pool(configuration))
    return stem


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def _same_convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Conv2d:
    return SameConv2d(inputs, outputs, kernel, stride, bias=False)


def _pool(configuration: DenseNetConfig) -> nn.Module:
    if configuration.padding == "same":
        return SameMaxPool2d(kernel_size=3, stride=2)
    if configuration.blur:
        return nn.Sequential(nn.MaxPool2d(kernel_size=3, stride=1, padding=1), BlurPool2d())
    return nn.MaxPool2d(kernel_size=3, stride=2, padding=1)


def _pad_same(input: Tensor, kernel: int, stride: int, value: float) -> Tensor:
    sides: list[int] = []
    for size in (input.shape[-1], input.shape[-2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        sides += [total // 2, total - total // 2]
    return F.pad(input, sides, value=value)
