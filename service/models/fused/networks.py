"""A loaded model → a module of the same answers, up to rounding, that passes over memory less often."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from service.models.densenet import DenseNet
from service.models.fused.ops import TORCH, Norm, Ops
from service.models.loader import Uint8Model, grey


class Fused(nn.Module):
    """uint8 ``[N, H, W, 3]`` → features ``[N, C, h, w]`` and logits ``[N, classes]``, both in ``dtype``.

    Without a head the second is the features' mean.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: Uint8Model, body: nn.Module, dtype: torch.dtype, has_head: bool) -> None:
        super().__init__()
        self.body = body
        self.network = model.network
        self.network.features = nn.Sequential()  # the body has what it needs of it, in another form
        self.network.to(dtype)
        self._head = self.network.forward_head if has_head else _means
        self._channels, self._dtype = model.channels, dtype
        self.register_buffer("scale", (1 / (255 * model.std.double())).float().view(-1, 1, 1))
        self.register_buffer("shift", (-model.mean.double() / model.std.double()).float().view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(self._normalised(pixels))
        return features, self._head(features)

    def _normalised(self, pixels: Tensor) -> Tensor:
        """In fp32, rounded once: in half precision each of the 256 levels would be off by an error of its own."""
        if self._channels == 1 and pixels.shape[-1] == 3:
            pixels = grey(pixels)
        planes = pixels.permute(0, 3, 1, 2)
        normalised = torch.empty(
            planes.shape, dtype=self._dtype, device=pixels.device, memory_format=torch.channels_last
        )
        return torch.add(planes * self.scale, self.shift, out=normalised)


def fuse(
    model: Uint8Model, ops: Ops, device: torch.device, dtype: torch.dtype, *, has_head: bool = True
) -> Fused:
    """``model``, which belongs to the result from now on, on ``device`` in ``dtype``."""
    features = model.network.features
    if isinstance(model.network, DenseNet):
        body = nn.Sequential(*_densenet(features, ops, dtype))
    else:
        body = nn.Sequential(*_convolutions(list(features), ops, dtype))
    return Fused(model, body, dtype, has_head).to(device).eval().requires_grad_(False)


def _means(features: Tensor) -> Tensor:
    return features.mean((2, 3))


def _densenet(features: nn.Sequential, ops: Ops, dtype: torch.dtype) -> Iterator[nn.Module]:
    stem: list[nn.Module] = []
    for name, module in features.named_children():
        if not name.startswith(("denseblock", "transition", "norm5")):
            stem.append(module)
            continue
        yield from _convolutions(stem, ops, dtype)
        stem = []
        if name.startswith("denseblock"):
            yield _Block(list(module.children()), ops, dtype)
        elif name.startswith("transition"):
            yield _Transition(module, ops, dtype)
        else:
            yield _NormRelu(cast(nn.BatchNorm2d, module), ops)


def _convolutions(modules: list[nn.Module], ops: Ops, dtype: torch.dtype) -> Iterator[nn.Module]:
    """Convolution, norm and ReLU become one; whatever else stands between stays."""
    waiting = deque(modules)
    while waiting:
        module = waiting.popleft()
        if not isinstance(module, nn.Conv2d):
            yield module
            continue
        if waiting and isinstance(waiting[0], nn.BatchNorm2d):
            module = fuse_conv_bn_eval(module, cast(nn.BatchNorm2d, waiting.popleft()))
        module = _moved(module, dtype)
        if waiting and isinstance(waiting[0], nn.ReLU):
            waiting.popleft()
            # One with a padding of its own is more than a convolution.
            module = _ConvRelu(module, ops if type(module) is nn.Conv2d else TORCH)
        yield module


def _moved(conv: nn.Conv2d, dtype: torch.dtype) -> nn.Conv2d:
    return conv.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


class _ConvRelu(nn.Module):
    def __init__(self, conv: nn.Conv2d, ops: Ops) -> None:
        super().__init__()
        self.conv, self._ops = conv, ops

    def forward(self, x: Tensor) -> Tensor:
        return self._ops.conv_relu(x, self.conv)


class _NormRelu(nn.Module):
    def __init__(self, norm: nn.BatchNorm2d, ops: Ops) -> None:
        super().__init__()
        self.norm, self._ops = Norm(norm), ops

    def forward(self, x: Tensor) -> Tensor:
        return self._ops.norm_relu(x, self.norm)


class _Block(nn.Module):
    """A dense block with one buffer, which holds what came in and each layer's new features behind it."""

    def __init__(self, layers: list[nn.Module], ops: Ops, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(layer, ops, dtype) for layer in layers)
        self._growth = sum(cast(_Layer, layer).growth for layer in self.layers)

    def forward(self, x: Tensor) -> Tensor:
        images, channels, height, width = x.shape
        buffer = torch.empty(
            (images, channels + self._growth, height, width),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last,
        )
        buffer[:, :channels] = x
        for layer in self.layers:
            new = layer(buffer[:, :channels])
            buffer[:, channels : channels + new.shape[1]] = new
            channels += new.shape[1]
        return buffer


class _Layer(nn.Module):
    """Norm, ReLU and the 1x1 convolution in one, with the second norm folded into it; then the 3x3 one."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Module, ops: Ops, dtype: torch.dtype) -> None:
        super().__init__()
        parts = dict(layer.named_children())
        folded = fuse_conv_bn_eval(cast(nn.Conv2d, parts["conv1"]), cast(nn.BatchNorm2d, parts["norm2"]))
        assert folded.bias is not None
        self.norm, self._ops = Norm(cast(nn.BatchNorm2d, parts["norm1"])), ops
        self.register_buffer("weight", folded.weight.flatten(1).to(dtype))
        self.register_buffer("bias", folded.bias.to(dtype))
        self.conv = _moved(cast(nn.Conv2d, parts["conv2"]), dtype)
        self.growth = self.conv.out_channels

    def forward(self, x: Tensor) -> Tensor:
        new: Tensor = self.conv(self._ops.norm_relu_conv(x, self.norm, self.weight, self.bias))
        return new


class _Transition(nn.Module):
    """The pool comes before the 1x1 convolution: both are linear, so that a quarter of the products is enough."""

    def __init__(self, transition: nn.Module, ops: Ops, dtype: torch.dtype) -> None:
        super().__init__()
        parts = dict(transition.named_children())
        self.norm, self._ops = Norm(cast(nn.BatchNorm2d, parts["norm"])), ops
        self.pool = parts["pool"]
        self.conv = _moved(cast(nn.Conv2d, parts["conv"]), dtype)

    def forward(self, x: Tensor) -> Tensor:
        smaller: Tensor = self.conv(self.pool(self._ops.norm_relu(x, self.norm)))
        return smaller
