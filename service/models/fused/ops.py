"""Three operations that a network spends its memory traffic on, and the door to them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

log = logging.getLogger(__name__)

#: How far a fast operation may be from torch's, as ‖a - b‖ / ‖b‖: both round, in another order.
_LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


class Norm(nn.Module):
    """An evaluated batch norm as ``x * scale + shift``, fp32 ``[C]`` whatever the network's precision is."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        shift = norm.bias.double() - norm.running_mean.double() * scale
        self.register_buffer("scale", scale.float())
        self.register_buffer("shift", shift.float())


NormRelu = Callable[[Tensor, Norm], Tensor]
NormReluConv = Callable[[Tensor, Norm, Tensor, Tensor], Tensor]
ConvRelu = Callable[[Tensor, nn.Conv2d], Tensor]


@dataclass(frozen=True)
class Ops:
    """Activations are channels-last ``[N, C, H, W]``; an input may be the first channels of a wider block buffer."""

    norm_relu: NormRelu
    """``relu(x * scale + shift)``, computed in fp32 and rounded once."""
    norm_relu_conv: NormReluConv
    """The same, and of its result ``relu(conv1x1(...) + bias)`` with a weight ``[outputs, C]``."""
    conv_relu: ConvRelu
    """``relu(conv(x))`` of a convolution with a bias."""
    names: tuple[str, ...] = ()
    """Of those that are not torch's own."""


def _norm_relu(x: Tensor, norm: Norm) -> Tensor:
    # Torch computes a batch norm of half precision in fp32, in one pass; 0 and 1 leave scale and shift alone.
    zero, one = torch.zeros_like(norm.scale), torch.ones_like(norm.scale)
    return F.batch_norm(x, zero, one, norm.scale, norm.shift, eps=0.0).relu_()


def _norm_relu_conv(x: Tensor, norm: Norm, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(_norm_relu(x, norm), weight[:, :, None, None], bias).relu_()


def _conv_relu(x: Tensor, conv: nn.Conv2d) -> Tensor:
    y: Tensor = conv(x)
    return y.relu_()


TORCH = Ops(_norm_relu, _norm_relu_conv, _conv_relu)
"""On any device: what the others are held against."""


def _cudnn_conv_relu(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Bias and ReLU in the convolution's epilogue: torch's own convolution takes a pass over memory for each."""
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


def best(device: torch.device, dtype: torch.dtype) -> Ops:
    """The fastest operations of this host that say what torch's say, tried one by one on random numbers."""
    if device.type != "cuda":
        return TORCH
    candidates: dict[str, Callable[..., Any]] = {"conv_relu": _cudnn_conv_relu}
    try:
        from service.models.fused import kernels

        candidates |= {"norm_relu": kernels.norm_relu, "norm_relu_conv": kernels.norm_relu_conv}
    except ImportError as error:
        log.warning("without Triton (%s) a DenseNet takes more passes over memory", error)
    return chosen(candidates, device, dtype)


@torch.inference_mode()
def chosen(candidates: dict[str, Callable[..., Any]], device: torch.device, dtype: torch.dtype) -> Ops:
    """`TORCH`, with those of ``candidates`` in it that run here and agree with it."""
    found = TORCH
    for name, candidate in candidates.items():
        arguments = _example(name, device, dtype)
        expected = getattr(TORCH, name)(*arguments)
        try:
            got = candidate(*arguments)
            away = float((got.float() - expected.float()).norm() / expected.float().norm())
            if not away <= _LIMITS[dtype]:
                raise ArithmeticError(f"its answers are off by {away:.2g}")
        except Exception as error:
            # The border of what this host can compile: a missing compiler is a slower service, not a broken one.
            log.warning("%s falls back to torch: %s", name, (str(error).splitlines() or [repr(error)])[0])
            continue
        found = replace(found, **{name: candidate}, names=(*found.names, name))
    return found


def _example(name: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    """Odd sizes, and the first channels of a wider buffer."""
    chance = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=chance).to(device, dtype)

    buffer = numbers(3, 120, 7, 5).to(memory_format=torch.channels_last)
    if name == "conv_relu":
        conv = nn.Conv2d(120, 48, 3, padding=1).requires_grad_(False)
        conv.weight.copy_(numbers(48, 120, 3, 3) / 33)
        moved = conv.to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return buffer, moved
    norm = Norm(nn.BatchNorm2d(88).eval().requires_grad_(False)).to(device)
    norm.scale.copy_(numbers(88))
    norm.shift.copy_(numbers(88))
    if name == "norm_relu":
        return buffer[:, :88], norm
    return buffer[:, :88], norm, numbers(48, 88) / 9, numbers(48)
