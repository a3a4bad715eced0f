"""The operations of `service.models.fused.ops` in Triton. Imported only where Triton is: torch's CUDA build brings it.

Activations are channels-last, so a pixel's channels lie side by side: a matrix of ``N * H * W`` rows. The input may
be the first columns of a wider one, which ``stride`` tells.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.models.fused.ops import Norm

_MOST_OUTPUTS = 128


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _norm_relu(
    x: Any, scale: Any, shift: Any, out: Any, rows: Any, channels: Any, stride: Any,
    block_rows: tl.constexpr, block_channels: tl.constexpr,
) -> None:  # fmt: skip
    row = (tl.program_id(0) * block_rows + tl.arange(0, block_rows)).to(tl.int64)[:, None]
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    inside = channel < channels
    mask = (row < rows) & inside[None, :]
    numbers = tl.load(x + row * stride + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    times = tl.load(scale + channel, mask=inside, other=0.0)[None, :]
    plus = tl.load(shift + channel, mask=inside, other=0.0)[None, :]
    result = tl.maximum(numbers * times + plus, 0.0)
    tl.store(out + row * channels + channel[None, :], result.to(out.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _norm_relu_matmul(
    x: Any, scale: Any, shift: Any, weight: Any, bias: Any, out: Any,
    rows: Any, inputs: Any, outputs: Any, stride: Any,
    block_rows: tl.constexpr, block_inputs: tl.constexpr, block_outputs: tl.constexpr,
) -> None:  # fmt: skip
    row = (tl.program_id(0) * block_rows + tl.arange(0, block_rows)).to(tl.int64)[:, None]
    column = tl.program_id(1) * block_outputs + tl.arange(0, block_outputs)
    total = tl.zeros((block_rows, block_outputs), tl.float32)
    for start in range(0, inputs, block_inputs):
        k = start + tl.arange(0, block_inputs)
        inside = k < inputs
        numbers = tl.load(x + row * stride + k[None, :], mask=(row < rows) & inside[None, :], other=0.0)
        times = tl.load(scale + k, mask=inside, other=0.0)[None, :]
        plus = tl.load(shift + k, mask=inside, other=0.0)[None, :]
        normed = tl.maximum(numbers.to(tl.float32) * times + plus, 0.0).to(weight.dtype.element_ty)
        at = weight + column[None, :] * inputs + k[:, None]
        factors = tl.load(at, mask=inside[:, None] & (column < outputs)[None, :], other=0.0)
        # ieee: fp32 is to be fp32, not TF32. It means nothing to half precision.
        total = tl.dot(normed, factors, total, input_precision="ieee")
    added = tl.load(bias + column, mask=column < outputs, other=0.0).to(tl.float32)
    result = tl.maximum(total + added[None, :], 0.0).to(out.dtype.element_ty)
    tl.store(out + row * outputs + column[None, :], result, mask=(row < rows) & (column < outputs)[None, :])


def norm_relu(x: Tensor, norm: Norm) -> Tensor:
    """See `service.models.fused.ops.Ops`."""
    rows, stride = _matrix(x)
    channels = x.shape[1]
    out = _like(x, channels)
    width = min(_MOST_OUTPUTS, triton.next_power_of_2(channels))
    grid = (triton.cdiv(rows, 32), triton.cdiv(channels, width))
    _norm_relu[grid](
        x, norm.scale, norm.shift, out, rows, channels, stride, block_rows=32, block_channels=width
    )
    return out


def norm_relu_conv(x: Tensor, norm: Norm, weight: Tensor, bias: Tensor) -> Tensor:
    """See `service.models.fused.ops.Ops`."""
    rows, stride = _matrix(x)
    outputs, inputs = weight.shape
    out = _like(x, outputs)
    # tl.dot wants sides of 16 at least; fp32 takes twice the shared memory.
    width = max(16, min(_MOST_OUTPUTS, triton.next_power_of_2(outputs)))
    height = 64 if x.dtype is torch.float32 else 128
    grid = (triton.cdiv(rows, height), triton.cdiv(outputs, width))
    _norm_relu_matmul[grid](
        *(x, norm.scale, norm.shift, weight, bias, out, rows, inputs, outputs, stride),
        block_rows=height, block_inputs=32, block_outputs=width, num_warps=8, num_stages=3,
    )  # fmt: skip
    return out


def _matrix(x: Tensor) -> tuple[int, int]:
    """Rows, and the distance between two of them."""
    images, _, height, width = x.shape
    stride = x.stride(3)
    assert x.stride() == (height * width * stride, 1, width * stride, stride), (
        "the input is not channels-last"
    )
    return images * height * width, stride


def _like(x: Tensor, channels: int) -> Tensor:
    images, _, height, width = x.shape
    shape = (images, channels, height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
