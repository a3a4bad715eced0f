"""The operations that cause most of a network's memory traffic, and the choice between their versions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.models.fused.fastest import Fastest, Operation, Timer, device_seconds
from service.models.fused.norm import Norm
from service.shared.fallback import Fallback, sentence

#: Largest ‖a - b‖ / ‖b‖ between a fast operation and torch's: both round, in different orders.
_LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
#: Epsilon for a batch norm with variance 1: torch demands more than 0, and 1 + 1e-12 is 1 in fp32.
_NO_EPSILON = 1e-12


#: Most channels of an input for which there is a convolution of its own: an image's.
FEW = 4

Normalise = Callable[[Tensor, Tensor, Tensor, torch.dtype], Tensor]
NormRelu = Callable[[Tensor, Norm], Tensor]
NormReluConv = Callable[[Tensor, Norm, Tensor, Tensor], Tensor]
ConvRelu = Callable[[Tensor, nn.Conv2d], Tensor]
ConvInto = Callable[[Tensor, nn.Conv2d, Tensor], None]
MaxPool = Callable[[Tensor, int, int, int, Tensor], None]


@dataclass(frozen=True)
class Ops:
    """One version of each operation. Activations are channels-last ``[N, C, H, W]``.

    An input may be the first channels of a wider buffer. An output that is given is channels-last too, and may be
    some channels of a buffer.
    """

    normalise: Normalise
    """Computes ``pixels * scale + shift`` of integers ``[N, H, W, C]`` in fp32, rounded once to a dtype."""
    norm_relu: NormRelu
    """Computes ``relu(x * scale + shift)`` in fp32, rounded once."""
    norm_relu_pool: NormRelu
    """Computes ``norm_relu`` and then the mean of each 2x2."""
    norm_relu_conv: NormReluConv
    """Computes ``norm_relu`` and then ``relu(conv1x1(...) + bias)`` with a weight ``[outputs, C]``."""
    max_pool: MaxPool
    """Writes the largest of each window into ``out``. Arguments: x, kernel, step, padding, out."""
    conv_relu: ConvRelu
    """Computes ``relu(conv(x))`` of a convolution with a bias."""
    first_conv: ConvRelu
    """Computes the same for a convolution of at most `FEW` channels."""
    conv_into: ConvInto
    """Writes ``conv(x)`` into ``out``; the convolution is 3x3, without bias, and keeps the size."""
    names: tuple[str, ...] = ()
    """Names of the operations that are not torch's own."""
    refused: tuple[Fallback, ...] = ()
    """Operations that were tried and refused, with the reason; torch's own take their places."""


def _normalise(pixels: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    planes = pixels.permute(0, 3, 1, 2)
    out = torch.empty(planes.shape, dtype=dtype, device=pixels.device, memory_format=torch.channels_last)
    return torch.add(planes * scale.view(-1, 1, 1), shift.view(-1, 1, 1), out=out)


def _norm_relu(x: Tensor, norm: Norm) -> Tensor:
    # torch computes a batch norm of half precision in fp32, in one pass.
    return F.batch_norm(x, norm.zero, norm.one, norm.scale, norm.shift, eps=_NO_EPSILON).relu_()


def _norm_relu_pool(x: Tensor, norm: Norm) -> Tensor:
    return F.avg_pool2d(_norm_relu(x, norm), 2)


def _norm_relu_conv(x: Tensor, norm: Norm, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(_norm_relu(x, norm), weight.view(*weight.shape, 1, 1), bias).relu_()


def _max_pool(x: Tensor, kernel: int, step: int, padding: int, out: Tensor) -> None:
    out.copy_(F.max_pool2d(x, kernel, step, padding))


def _conv_relu(x: Tensor, conv: nn.Conv2d) -> Tensor:
    y: Tensor = conv(x)
    return y.relu_()


def _conv_into(x: Tensor, conv: nn.Conv2d, out: Tensor) -> None:
    out.copy_(conv(x))


TORCH = Ops(
    _normalise, _norm_relu, _norm_relu_pool, _norm_relu_conv, _max_pool, _conv_relu, _conv_relu, _conv_into
)  # fmt: skip
"""Torch's own operations, on any device: the reference for the others."""


def _cudnn_conv_relu(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Runs bias and ReLU in the convolution's epilogue, where torch's own convolution makes a memory pass for each."""
    result: Tensor = torch.cudnn_convolution_relu(
        x,
        conv.weight,
        conv.bias,
        conv.stride,
        cast(tuple[int, int], conv.padding),
        conv.dilation,
        conv.groups,
    )
    return result


Candidates = dict[str, Sequence[Operation]]
"""Versions of operations by their names in `Ops`. Where there are several, torch's own takes part in the choice."""


def candidates() -> tuple[Candidates, tuple[Fallback, ...]]:
    """Returns faster operations on CUDA by their names in `Ops`, and the reasons why some are missing."""
    cudnn: Candidates = {"conv_relu": (_cudnn_conv_relu,)}
    try:
        from service.models.fused import kernels
    except Exception as error:
        # The border of another library: a broken installation raises anything.
        return cudnn | {"first_conv": cudnn["conv_relu"]}, (Fallback("triton", sentence(error)),)
    names = ("normalise", "norm_relu", "norm_relu_pool", "norm_relu_conv", "max_pool")
    ours: Candidates = {name: (getattr(kernels, name),) for name in names}
    several: Candidates = {
        "first_conv": (kernels.first_conv, _cudnn_conv_relu),
        "conv_into": (kernels.conv_into, kernels.conv_into_small),
    }
    return cudnn | ours | several, ()


def best(device: torch.device, dtype: torch.dtype) -> Ops:
    """Returns the fastest operations of this host that agree with torch's, each tried on random numbers."""
    if device.type != "cuda":
        return TORCH
    faster, missing = candidates()
    found = chosen(faster, device, dtype)
    return replace(found, refused=(*missing, *found.refused))


@torch.inference_mode()
def chosen(
    faster: Candidates, device: torch.device, dtype: torch.dtype, seconds: Timer = device_seconds
) -> Ops:
    """Returns `TORCH` with those of ``faster`` that run here and agree with it.

    Of an operation with several versions, each size gets the fastest of them and torch's own.
    """
    found = TORCH
    for name, versions in faster.items():
        works = []
        for version in versions:
            try:
                _prove(name, version, device, dtype)
                works.append(version)
            except Exception as error:
                # The border of what this host can compile: a missing compiler makes the service slower and must not
                # break it.
                found = replace(found, refused=(*found.refused, Fallback(name, sentence(error))))
        if works:
            taken = works[0] if len(versions) == 1 else Fastest((getattr(TORCH, name), *works), seconds)
            changes: dict[str, Any] = {name: taken, "names": (*found.names, name)}
            found = replace(found, **changes)
    return found


def _prove(name: str, candidate: Operation, device: torch.device, dtype: torch.dtype) -> None:
    """Raises unless the candidate's result agrees with torch's."""
    expected = called(getattr(TORCH, name), _example(name, device, dtype)).float()
    got = called(candidate, _example(name, device, dtype)).float()
    away = float((got - expected).norm() / expected.norm())
    if not away <= _LIMITS[dtype]:
        raise ArithmeticError(f"its answers are off by {away:.2g}")


def called(operation: Callable[..., Any], arguments: tuple[Any, ...]) -> Tensor:
    """Returns the result of an operation, or the last argument if that is its output."""
    result = operation(*arguments)
    return cast(Tensor, arguments[-1] if result is None else result)


def _example(name: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    """Returns arguments of odd sizes: inputs are the first channels of a wider buffer, outputs are in the middle of
    one."""
    chance, images, side = torch.Generator().manual_seed(0), 3, 7

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=chance).to(device, dtype)

    def buffer(channels: int, lines: int = side, columns: int = side - 2) -> Tensor:
        return numbers(images, channels, lines, columns).to(memory_format=torch.channels_last)

    if name == "normalise":
        pixels = torch.randint(0, 256, (images, side, side - 2, 3), dtype=torch.uint8, generator=chance)
        return pixels.to(device), numbers(3).float() / 64, numbers(3).float(), dtype
    if name == "max_pool":
        lines, columns = (side + 1) // 2, (side - 1) // 2
        return buffer(120), 3, 2, 1, buffer(184, lines, columns)[:, 32:152]
    if name in ("first_conv", "conv_relu", "conv_into"):
        conv = {
            "first_conv": nn.Conv2d(3, 48, 7, stride=2, padding=3),
            "conv_relu": nn.Conv2d(120, 48, 3, padding=1),
            "conv_into": nn.Conv2d(128, 32, 3, padding=1, bias=False),
        }[name].requires_grad_(False)
        conv.weight.copy_(numbers(*conv.weight.shape) / conv.weight[0].numel() ** 0.5)
        if conv.bias is not None:
            conv.bias.copy_(numbers(*conv.bias.shape))
        moved = conv.to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = buffer(conv.in_channels)
        return (x, moved, buffer(96)[:, 32:64]) if name == "conv_into" else (x, moved)
    norm = Norm(nn.BatchNorm2d(88).eval().requires_grad_(False)).to(device)
    norm.scale.copy_(numbers(88))
    norm.shift.copy_(numbers(88))
    if name == "norm_relu_conv":
        return buffer(120)[:, :88], norm, numbers(48, 88) / 9, numbers(48)
    return buffer(120)[:, :88], norm
