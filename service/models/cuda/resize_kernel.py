"""`service.models.cuda.resize` in Triton: one launch for a batch of photos. Imported only where Triton is installed.

A program makes some numbers of one photo's result. It sums the first pass anew for each tap of the second one, since
a photo's bytes lie in the processor's cache then, and an image in between would be written to memory and read again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.images.resample import PRECISION_BITS
from service.models.cuda.resize import Axis, Passes
from service.models.fused.kernels import launch

#: int64 values that describe a photo (see `_described`), and numbers of a program.
_FIELDS, _NUMBERS = 16, 1024
CONSTANTS = {"fields": _FIELDS, "bits": PRECISION_BITS, "block": _NUMBERS}


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def resize(  # type: ignore[no-untyped-def, unused-ignore]
    described, out, height, width, fields: tl.constexpr, bits: tl.constexpr, block: tl.constexpr
):
    photo = tl.program_id(0)
    this = described + photo * fields
    source = tl.load(this).to(tl.pointer_type(tl.uint8))
    first_index = tl.load(this + 1).to(tl.pointer_type(tl.int32))
    first_weight = tl.load(this + 2).to(tl.pointer_type(tl.int32))
    first_taps, first_size = tl.load(this + 3).to(tl.int32), tl.load(this + 4).to(tl.int32)
    first_stride = tl.load(this + 5)
    second_index = tl.load(this + 6).to(tl.pointer_type(tl.int32))
    second_weight = tl.load(this + 7).to(tl.pointer_type(tl.int32))
    second_taps, second_size = tl.load(this + 8).to(tl.int32), tl.load(this + 9).to(tl.int32)
    second_stride = tl.load(this + 10)
    rows_first = tl.load(this + 11) != 0
    top, left = tl.load(this + 12).to(tl.int32), tl.load(this + 13).to(tl.int32)
    channel_stride = tl.load(this + 14)

    at = tl.program_id(1) * block + tl.arange(0, block)
    row, column = at // 3 // width - top, at // 3 % width - left
    first_at = tl.where(rows_first, row, column)
    second_at = tl.where(rows_first, column, row)
    inside = at < height * width * 3
    made = inside & (first_at >= 0) & (first_at < first_size) & (second_at >= 0) & (second_at < second_size)
    channel = source + (at % 3) * channel_stride
    half: tl.constexpr = 1 << (bits - 1)
    total = tl.full((block,), half, tl.int32)
    for over in range(second_taps):
        outer = tl.load(second_index + over * second_size + second_at, mask=made, other=0)
        outer_weight = tl.load(second_weight + over * second_size + second_at, mask=made, other=0)
        line = channel + outer * second_stride
        part = tl.full((block,), half, tl.int32)
        for under in range(first_taps):
            inner = tl.load(first_index + under * first_size + first_at, mask=made, other=0)
            weight = tl.load(first_weight + under * first_size + first_at, mask=made, other=0)
            level = tl.load(line + inner * first_stride, mask=made, other=0).to(tl.int32)
            part += level * weight
        total += tl.minimum(tl.maximum(part >> bits, 0), 255) * outer_weight
    result = tl.where(made, tl.minimum(tl.maximum(total >> bits, 0), 255), 0)
    tl.store(out + photo.to(tl.int64) * height * width * 3 + at, result.to(tl.uint8), mask=inside)


def by_triton(photos: Sequence[Tensor], passes: Sequence[Passes], shape: tuple[int, int, int]) -> Tensor:
    """Resizes all photos at once, a `service.models.cuda.resize.Resize`."""
    device, (height, width, _) = photos[0].device, shape
    described = torch.tensor([_described(*each) for each in zip(photos, passes, strict=True)])
    out = torch.empty((len(photos), *shape), dtype=torch.uint8, device=device)
    grid = (len(photos), triton.cdiv(out[0].numel(), _NUMBERS))
    launch(resize, grid, described.to(device), out, height, width, **CONSTANTS)
    return out


def _described(photo: Tensor, passes: Passes) -> list[int]:
    down, across, channel = photo.stride()
    strides = (down, across)
    found = [photo.data_ptr()]
    for along in (passes.first, passes.second):
        found += [*_axis(along), strides[along.axis]]
    found += [int(passes.first.axis == 0), passes.top, passes.left, channel, 0]
    return found


def _axis(along: Axis) -> list[int]:
    return [along.index.data_ptr(), along.weight.data_ptr(), *along.index.shape]
