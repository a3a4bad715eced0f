"""Rewrites a loaded model as a module with the same answers, up to rounding, that passes over memory less often."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from service.models.densenet import DenseNet
from service.models.fused.norm import Norm
from service.models.fused.ops import FEW, TORCH, Ops
from service.models.loader import Uint8Model, grey


class Fused(nn.Module):
    """A fused network: uint8 ``[N, H, W, 3]`` → features ``[N, C, h, w]`` and logits ``[N, classes]``, both in
    ``dtype``.

    Without a head the second result is the features' mean.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, model: Uint8Model, body: nn.Module, ops: Ops, dtype: torch.dtype, has_head: bool
    ) -> None:
        super().__init__()
        self.body = body
        self.network = model.network
        self.network.features = nn.Sequential()  # the body holds these layers in another form
        self.network.to(dtype)
        self._head = self.network.forward_head if has_head else _means
        self._channels, self._ops, self._dtype = model.channels, ops, dtype
        self.register_buffer("scale", (1 / (255 * model.std.double())).float())
        self.register_buffer("shift", (-model.mean.double() / model.std.double()).float())

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        if self._channels == 1 and pixels.shape[-1] == 3:
            pixels = grey(pixels)
        # In fp32, rounded once: in half precision each of the 256 levels would have an error of its own.
        features = self.body(self._ops.normalise(pixels, self.scale, self.shift, self._dtype))
        return features, self._head(features)


def fuse(
    model: Uint8Model, ops: Ops, device: torch.device, dtype: torch.dtype, *, has_head: bool = True
) -> Fused:
    """Returns the fused network on ``device`` in ``dtype``. ``model`` must not be used afterwards."""
    features = model.network.features
    if isinstance(model.network, DenseNet):
        body: nn.Module = _densenet(features, ops, dtype)
    else:
        body = nn.Sequential(*_layers(list(features), ops, dtype))
    return Fused(model, body, ops, dtype, has_head).to(device).eval().requires_grad_(False)


def _means(features: Tensor) -> Tensor:
    return features.mean((2, 3))


def _layers(modules: list[nn.Module], ops: Ops, dtype: torch.dtype) -> Iterator[nn.Module]:
    """Yields the layers with convolution, norm and ReLU joined; other layers are unchanged."""
    waiting = deque(modules)
    while waiting:
        module = waiting.popleft()
        if isinstance(module, nn.MaxPool2d):
            yield _MaxPool(module, ops) if _MaxPool.suits(module) else module
            continue
        if not isinstance(module, nn.Conv2d):
            yield module
            continue
        if waiting and isinstance(waiting[0], nn.BatchNorm2d):
            module = fuse_conv_bn_eval(module, cast(nn.BatchNorm2d, waiting.popleft()))
        module = _moved(module, dtype)
        if waiting and isinstance(waiting[0], nn.ReLU):
            waiting.popleft()
            # A convolution with its own padding is more than a plain one.
            module = _ConvRelu(module, ops if type(module) is nn.Conv2d else TORCH)
        yield module


def _moved(conv: nn.Conv2d, dtype: torch.dtype) -> nn.Conv2d:
    return conv.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


class _ConvRelu(nn.Module):
    def __init__(self, conv: nn.Conv2d, ops: Ops) -> None:
        super().__init__()
        self.conv, self._ops = conv, ops

    def forward(self, x: Tensor) -> Tensor:
        run = self._ops.first_conv if self.conv.in_channels <= FEW else self._ops.conv_relu
        return run(x, self.conv)


class _Entrance(Protocol):
    """A layer that writes a dense block's input directly into the block's buffer."""

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the size of the result for an input of this size."""

    def into(self, x: Tensor, out: Tensor) -> None: ...


class _MaxPool(nn.Module):
    def __init__(self, pool: nn.MaxPool2d, ops: Ops) -> None:
        super().__init__()
        self._kernel, self._step, self._padding = map(int, (pool.kernel_size, pool.stride, pool.padding))  # type: ignore[arg-type]
        self._ops = ops

    @staticmethod
    def suits(pool: nn.MaxPool2d) -> bool:
        """Returns True for a square pool without the rarer options."""
        square = all(isinstance(side, int) for side in (pool.kernel_size, pool.stride, pool.padding))
        return square and pool.dilation == 1 and not pool.ceil_mode and not pool.return_indices

    def size(self, height: int, width: int) -> tuple[int, int]:
        height, width = (
            (side + 2 * self._padding - self._kernel) // self._step + 1 for side in (height, width)
        )
        return height, width

    def into(self, x: Tensor, out: Tensor) -> None:
        self._ops.max_pool(x, self._kernel, self._step, self._padding, out)

    def forward(self, x: Tensor) -> Tensor:
        if self._ops.max_pool is TORCH.max_pool:
            # torch's pool allocates its own output, which `into` would copy.
            return F.max_pool2d(x, self._kernel, self._step, self._padding)
        images, channels, height, width = x.shape
        out = _empty(x, (images, channels, *self.size(height, width)))
        self.into(x, out)
        return out


class _Copy(nn.Module):
    """An entrance for a stem that does not end in a pool."""

    def size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def into(self, x: Tensor, out: Tensor) -> None:
        out.copy_(x)


class _Transition(nn.Module):
    """A transition with its pool before the 1x1 convolution: both are linear, so a quarter of the products suffices."""

    weight: Tensor

    def __init__(self, transition: nn.Module, ops: Ops, dtype: torch.dtype) -> None:
        super().__init__()
        parts = dict(transition.named_children())
        self.norm, self._ops = Norm(cast(nn.BatchNorm2d, parts["norm"])), ops
        self.register_buffer("weight", cast(nn.Conv2d, parts["conv"]).weight.flatten(1).to(dtype))

    def size(self, height: int, width: int) -> tuple[int, int]:
        return height // 2, width // 2

    def into(self, x: Tensor, out: Tensor) -> None:
        smaller = self._ops.norm_relu_pool(x, self.norm)
        # A matrix product can leave gaps between the rows of its output; a convolution cannot.
        torch.mm(_rows(smaller), self.weight.T, out=_rows(out))


class _Block(nn.Module):
    """A dense block with one buffer for its input, followed by each layer's new features."""

    def __init__(self, layers: Sequence[nn.Module], ops: Ops, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(layer, ops, dtype) for layer in layers)
        self.inputs = cast(_Layer, self.layers[0]).inputs
        self._growth = sum(cast(_Layer, layer).growth for layer in self.layers)

    def buffer(self, like: Tensor, height: int, width: int) -> Tensor:
        """Allocates a buffer. Its first `inputs` channels must be written before `forward`."""
        return _empty(like, (len(like), self.inputs + self._growth, height, width))

    def forward(self, buffer: Tensor) -> Tensor:
        channels = self.inputs
        for module in self.layers:
            layer = cast(_Layer, module)
            layer.into(buffer.narrow(1, 0, channels), buffer.narrow(1, channels, layer.growth))
            channels += layer.growth
        return buffer


class _Layer(nn.Module):
    """A dense layer: norm, ReLU and 1x1 convolution in one, with the second norm folded in; then the 3x3 one."""

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
        self.inputs, self.growth = folded.in_channels, self.conv.out_channels

    def into(self, x: Tensor, out: Tensor) -> None:
        self._ops.conv_into(self._ops.norm_relu_conv(x, self.norm, self.weight, self.bias), self.conv, out)


class _DenseBody(nn.Module):
    def __init__(
        self, stem: list[nn.Module], entrances: list[nn.Module], blocks: list[_Block], last: Norm, ops: Ops
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*stem)
        self.entrances, self.blocks = nn.ModuleList(entrances), nn.ModuleList(blocks)
        self.last, self._ops = last, ops

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for module, block in zip(self.entrances, self.blocks, strict=True):
            entrance, block = cast(_Entrance, module), cast(_Block, block)
            buffer = block.buffer(x, *entrance.size(*x.shape[2:]))
            entrance.into(x, buffer.narrow(1, 0, block.inputs))
            x = block(buffer)
        return self._ops.norm_relu(x, self.last)


def _densenet(features: nn.Sequential, ops: Ops, dtype: torch.dtype) -> _DenseBody:
    parts = dict(features.named_children())
    last = Norm(cast(nn.BatchNorm2d, parts.pop("norm5")))
    blocks = [
        _Block(list(parts.pop(name).children()), ops, dtype)
        for name in [*parts]
        if name.startswith("denseblock")
    ]
    transitions = [
        _Transition(parts.pop(name), ops, dtype) for name in [*parts] if name.startswith("transition")
    ]
    stem = list(_layers(list(parts.values()), ops, dtype))
    first = stem.pop() if isinstance(stem[-1], _MaxPool) else _Copy()
    return _DenseBody(stem, [first, *transitions], blocks, last, ops)


def _empty(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _rows(x: Tensor) -> Tensor:
    """Returns channels-last ``[N, C, H, W]`` as a matrix ``[N * H * W, C]`` over the same memory."""
    images, channels, height, width = x.shape
    return x.as_strided((images * height * width, channels), (x.stride(3), 1))
