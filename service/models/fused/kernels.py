"""The operations of `service.models.fused.ops` in Triton. Imported only where Triton is installed, as torch's CUDA
build is.

Activations are channels-last, so a pixel's channels are adjacent: a matrix of ``N * H * W`` rows. Input and output
may be some columns of a wider matrix, whose row length is ``stride``.

Arguments of kernels have no annotations: Triton's front end resolves every name in a kernel and knows no Python
types. ReLU is a comparison, because a maximum would turn NaN into 0 and hide an overflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from service.models.fused.norm import Norm

#: Most channels of one program in kernels without products.
_CHANNELS = 128
#: Rows of a program in such a kernel, in the pool (whose addresses take registers), and numbers in `_normalise`.
_ROWS, _POOL_ROWS, _NUMBERS = 32, 16, 1024
#: Most columns of one product: more would leave too few registers for the sums.
_MAX_OUTPUTS = 256
#: Compile options of every kernel. A product and a sum are one operation with one rounding. This is Triton's default
#: until 3.9; later versions have the other default.
OPTIONS = {"enable_fp_fusion": True}
#: Multiprocessors of the intended GPUs (A100 108, H100 132, B200 148). With fewer programs, smaller tiles keep more
#: of them busy.
_PROCESSORS = 128


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _normalise(  # type: ignore[no-untyped-def, unused-ignore]
    pixels, scale, shift, out, numbers, channels: tl.constexpr, block: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < numbers
    channel = (at % channels).to(tl.int32)
    levels = tl.load(pixels + at, mask=inside, other=0).to(tl.float32)
    result = levels * tl.load(scale + channel) + tl.load(shift + channel)
    tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _norm_relu(  # type: ignore[no-untyped-def, unused-ignore]
    x, scale, shift, out, rows, channels, stride, block_rows: tl.constexpr, block_channels: tl.constexpr
):
    row = (tl.program_id(0) * block_rows + tl.arange(0, block_rows)).to(tl.int64)[:, None]
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    inside = channel < channels
    mask = (row < rows) & inside[None, :]
    numbers = tl.load(x + row * stride + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    times = tl.load(scale + channel, mask=inside, other=0.0)[None, :]
    plus = tl.load(shift + channel, mask=inside, other=0.0)[None, :]
    normed = numbers * times + plus
    result = tl.where(normed < 0, 0.0, normed)
    tl.store(out + row * channels + channel[None, :], result.to(out.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _norm_relu_pool(  # type: ignore[no-untyped-def, unused-ignore]
    x, scale, shift, out, rows, channels, stride, height, width,
    block_rows: tl.constexpr, block_channels: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * block_rows + tl.arange(0, block_rows)).to(tl.int64)[:, None]
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    inside = channel < channels
    mask = (row < rows) & inside[None, :]
    times = tl.load(scale + channel, mask=inside, other=0.0)[None, :]
    plus = tl.load(shift + channel, mask=inside, other=0.0)[None, :]
    columns, lines = width // 2, height // 2
    corner = ((row // columns // lines) * height + (row // columns % lines) * 2) * width + row % columns * 2
    total = tl.zeros((block_rows, block_channels), tl.float32)
    for down in tl.static_range(2):
        for right in tl.static_range(2):
            at = x + (corner + down * width + right) * stride + channel[None, :]
            normed = tl.load(at, mask=mask, other=0.0).to(tl.float32) * times + plus
            total += tl.where(normed < 0, 0.0, normed)
    tl.store(out + row * channels + channel[None, :], (total * 0.25).to(out.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _max_pool(  # type: ignore[no-untyped-def, unused-ignore]
    x, out, rows, channels, stride, height, width, lines, columns,
    kernel: tl.constexpr, step: tl.constexpr, padding: tl.constexpr,
    block_rows: tl.constexpr, block_channels: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * block_rows + tl.arange(0, block_rows)).to(tl.int64)[:, None]
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    mask = (row < rows) & (channel < channels)[None, :]
    image, top, left = row // columns // lines, row // columns % lines * step, row % columns * step
    best = tl.full((block_rows, block_channels), float("-inf"), tl.float32)
    for down in tl.static_range(kernel):
        for right in tl.static_range(kernel):
            line, column = top + (down - padding), left + (right - padding)
            there = (line >= 0) & (line < height) & (column >= 0) & (column < width)
            at = x + ((image * height + line) * width + column) * channels + channel[None, :]
            numbers = tl.load(at, mask=mask & there, other=float("-inf")).to(tl.float32)
            # The second condition keeps NaN, so that it shows in the answer.
            best = tl.where((numbers > best) | (numbers != numbers), numbers, best)
    tl.store(out + row * stride + channel[None, :], best.to(out.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _norm_relu_matmul(  # type: ignore[no-untyped-def, unused-ignore]
    x, scale, shift, weight, bias, out, rows, inputs, outputs, stride, whole: tl.constexpr,
    block_rows: tl.constexpr, block_inputs: tl.constexpr, block_outputs: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * block_rows + tl.arange(0, block_rows)).to(tl.int64)[:, None]
    column = tl.program_id(1) * block_outputs + tl.arange(0, block_outputs)
    wanted = _inside(column, outputs, whole)
    total = tl.zeros((block_rows, block_outputs), tl.float32)
    for start in range(0, inputs, block_inputs):
        k = start + tl.arange(0, block_inputs)
        inside = _inside(k, inputs, whole)
        numbers = tl.load(x + row * stride + k[None, :], mask=(row < rows) & inside[None, :], other=0.0)
        times = tl.load(scale + k, mask=inside, other=0.0)[None, :]
        plus = tl.load(shift + k, mask=inside, other=0.0)[None, :]
        normed = numbers.to(tl.float32) * times + plus
        activated = tl.where(normed < 0, 0.0, normed).to(weight.dtype.element_ty)
        at = weight + column[None, :] * inputs + k[:, None]
        factors = tl.load(at, mask=inside[:, None] & wanted[None, :], other=0.0)
        # ieee: fp32 without TF32. Half precision ignores it.
        total = tl.dot(activated, factors, total, input_precision="ieee")
    total += tl.load(bias + column, mask=wanted, other=0.0).to(tl.float32)[None, :]
    result = tl.where(total < 0, 0.0, total).to(out.dtype.element_ty)
    tl.store(out + row * outputs + column[None, :], result, mask=(row < rows) & wanted[None, :])


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _conv3x3(  # type: ignore[no-untyped-def, unused-ignore]
    x, weight, out, rows, inputs, outputs, stride, height, width, whole: tl.constexpr, unrolled: tl.constexpr,
    block_rows: tl.constexpr, block_inputs: tl.constexpr, block_outputs: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * block_rows + tl.arange(0, block_rows))[:, None]
    column = tl.program_id(1) * block_outputs + tl.arange(0, block_outputs)
    wanted = _inside(column, outputs, whole)
    line, place = row // width % height, row % width
    k = tl.arange(0, block_inputs)
    pixel = x + row.to(tl.int64) * inputs + k[None, :]
    filters = weight + column[None, :] * (9 * inputs) + k[:, None]
    total = tl.zeros((block_rows, block_outputs), tl.float32)
    for start in range(0, inputs, block_inputs):
        inside = _inside(start + k, inputs, whole)
        here, fits = (row < rows) & inside[None, :], inside[:, None] & wanted[None, :]
        if unrolled:
            # The nine taps of some inputs follow each other: what one has loaded, the next finds in the L1 cache.
            for tap in tl.static_range(9):
                total = _plus_tap(
                    total, tap, pixel + start, filters + start, here, fits, line, place, inputs, height, width
                )
        else:
            # A loop, whose next loads the compiler starts while it multiplies. With few programs nothing else would
            # hide the time that memory takes.
            for tap in range(9):
                total = _plus_tap(
                    total, tap, pixel + start, filters + start, here, fits, line, place, inputs, height, width
                )
    mask = (row < rows) & wanted[None, :]
    tl.store(out + row.to(tl.int64) * stride + column[None, :], total.to(out.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _first_conv(  # type: ignore[no-untyped-def, unused-ignore]
    x, weight, bias, out, rows, outputs, height, width, lines, columns,
    channels: tl.constexpr, down: tl.constexpr, right: tl.constexpr, step: tl.constexpr, top: tl.constexpr,
    left: tl.constexpr, block_rows: tl.constexpr, block_inputs: tl.constexpr, block_outputs: tl.constexpr,
):  # fmt: skip
    inputs: tl.constexpr = down * right * channels
    row = (tl.program_id(0) * block_rows + tl.arange(0, block_rows))[:, None]
    column = tl.program_id(1) * block_outputs + tl.arange(0, block_outputs)
    wanted = column < outputs
    line = row // columns % lines * step - top
    place = row % columns * step - left
    corner = x + ((row // columns // lines * height + line).to(tl.int64) * width + place) * channels
    total = tl.zeros((block_rows, block_outputs), tl.float32)
    for start in range(0, inputs, block_inputs):
        # One number of the product's inner side is one channel of one tap.
        k = start + tl.arange(0, block_inputs)
        tap_line, tap_place = (k // (right * channels))[None, :], (k // channels % right)[None, :]
        there = (line + tap_line >= 0) & (line + tap_line < height) & (row < rows) & (k < inputs)[None, :]
        there &= (place + tap_place >= 0) & (place + tap_place < width)
        at = corner + (tap_line * width + tap_place) * channels + (k % channels)[None, :]
        numbers = tl.load(at, mask=there, other=0.0)
        factors = tl.load(
            weight + column[None, :] * inputs + k[:, None],
            mask=(k < inputs)[:, None] & wanted[None, :], other=0.0,
        )  # fmt: skip
        total = tl.dot(numbers, factors, total, input_precision="ieee")
    total += tl.load(bias + column, mask=wanted, other=0.0).to(tl.float32)[None, :]
    result = tl.where(total < 0, 0.0, total).to(out.dtype.element_ty)
    tl.store(out + row.to(tl.int64) * outputs + column[None, :], result, mask=(row < rows) & wanted[None, :])


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _plus_tap(  # type: ignore[no-untyped-def, unused-ignore]
    total, tap, pixel, filters, here, fits, line, place, inputs, height, width
):
    down, right = tap // 3 - 1, tap % 3 - 1
    there = (line + down >= 0) & (line + down < height) & (place + right >= 0) & (place + right < width)
    numbers = tl.load(pixel + (down * width + right) * inputs, mask=here & there, other=0.0)
    factors = tl.load(filters + tap * inputs, mask=fits, other=0.0)
    return tl.dot(numbers, factors, total, input_precision="ieee")


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _inside(places, limit, whole: tl.constexpr):  # type: ignore[no-untyped-def, unused-ignore]
    # ``whole``: blocks fill the limits. The compiler then drops comparisons and masks.
    return tl.full(places.shape, True, tl.int1) if whole else places < limit


def launch(kernel: Any, grid: tuple[int, ...], /, *arguments: Any, **constants: Any) -> None:
    """Starts a kernel. Every start goes through here, so that tests can count or compile kernels instead."""
    kernel[grid](*arguments, **OPTIONS, **constants)


def normalise(pixels: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """Triton version of `service.models.fused.ops.Ops.normalise`."""
    images, height, width, channels = pixels.shape
    assert pixels.is_contiguous(), "pixels lie as rows of images"
    out = _empty(pixels.device, (images, channels, height, width), dtype)
    numbers = pixels.numel()
    grid = (triton.cdiv(numbers, _NUMBERS),)
    launch(_normalise, grid, pixels, scale, shift, out, numbers, channels=channels, block=_NUMBERS)
    return out


def norm_relu(x: Tensor, norm: Norm) -> Tensor:
    """Triton version of `service.models.fused.ops.Ops.norm_relu`."""
    rows, stride = _matrix(x)
    channels = x.shape[1]
    out = torch.empty_like(x, memory_format=torch.channels_last)
    width = _columns(channels)
    grid = (triton.cdiv(rows, _ROWS), triton.cdiv(channels, width))
    launch(
        _norm_relu, grid, x, norm.scale, norm.shift, out, rows, channels, stride,
        block_rows=_ROWS, block_channels=width,
    )  # fmt: skip
    return out


def norm_relu_pool(x: Tensor, norm: Norm) -> Tensor:
    """Triton version of `service.models.fused.ops.Ops.norm_relu_pool`."""
    _, stride = _matrix(x)
    images, channels, height, width = x.shape
    out = _empty(x.device, (images, channels, height // 2, width // 2), x.dtype)
    rows, block = images * (height // 2) * (width // 2), _columns(channels)
    grid = (triton.cdiv(rows, _ROWS), triton.cdiv(channels, block))
    launch(
        _norm_relu_pool, grid, x, norm.scale, norm.shift, out, rows, channels, stride, height, width,
        block_rows=_ROWS, block_channels=block,
    )  # fmt: skip
    return out


def max_pool(x: Tensor, kernel: int, step: int, padding: int, out: Tensor) -> None:
    """Triton version of `service.models.fused.ops.Ops.max_pool`."""
    _, channels, height, width = x.shape
    _, narrow = _matrix(x)
    assert narrow == channels, "the input is part of a wider one"
    rows, stride = _matrix(out)
    lines, columns = out.shape[2:]
    block = _columns(channels)
    grid = (triton.cdiv(rows, _POOL_ROWS), triton.cdiv(channels, block))
    launch(
        _max_pool, grid, x, out, rows, channels, stride, height, width, lines, columns,
        kernel=kernel, step=step, padding=padding, block_rows=_POOL_ROWS, block_channels=block,
    )  # fmt: skip


def norm_relu_conv(x: Tensor, norm: Norm, weight: Tensor, bias: Tensor) -> Tensor:
    """Triton version of `service.models.fused.ops.Ops.norm_relu_conv`."""
    rows, stride = _matrix(x)
    outputs, inputs = weight.shape
    images, _, *size = x.shape
    out = _empty(x.device, (images, outputs, *size), x.dtype)
    tile = _tile(rows, inputs, outputs, x.dtype)
    launch(
        _norm_relu_matmul, tile.grid(rows, outputs), x, norm.scale, norm.shift, weight, bias, out, rows, inputs,
        outputs, stride, **tile.constants(inputs, outputs),
    )  # fmt: skip
    return out


def conv_into(x: Tensor, conv: nn.Conv2d, out: Tensor) -> None:
    """Triton version of `service.models.fused.ops.Ops.conv_into`: 3x3, without bias, keeping the size."""
    columns = _power_of_2(conv.out_channels)
    if x.dtype is torch.float32:
        tile = Tile(32, 32, columns, warps=8, stages=1)
    else:
        tile = Tile(64, 64 if columns <= 32 else 32, columns, stages=1)
    _conv_into(x, conv, out, tile, unrolled=True)


def conv_into_small(x: Tensor, conv: nn.Conv2d, out: Tensor) -> None:
    """Does what `conv_into` does, by more and smaller programs: for small batches."""
    inputs = 32 if x.dtype is torch.float32 else 128
    _conv_into(x, conv, out, Tile(16, inputs, _power_of_2(conv.out_channels)), unrolled=False)


def _conv_into(x: Tensor, conv: nn.Conv2d, out: Tensor, tile: Tile, *, unrolled: bool) -> None:
    rows, narrow = _matrix(x)
    _, inputs, height, width = x.shape
    outputs = conv.out_channels
    assert narrow == inputs, "the input is part of a wider one"
    assert conv.weight.stride() == (9 * inputs, 1, 3 * inputs, inputs), "the filters are not channels-last"
    _, stride = _matrix(out)
    launch(
        _conv3x3, tile.grid(rows, outputs), x, conv.weight, out, rows, inputs, outputs, stride, height, width,
        unrolled=unrolled, **tile.constants(inputs, outputs),
    )  # fmt: skip


def first_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Triton version of `service.models.fused.ops.Ops.first_conv`.

    cuDNN pads the channels first, and took 13 % of a vgg16 for this convolution on an H200.
    """
    _, narrow = _matrix(x)
    images, channels, height, width = x.shape
    outputs, (down, right) = conv.out_channels, conv.kernel_size
    (top, left), step = cast(tuple[int, int], conv.padding), conv.stride[0]
    assert narrow == channels, "the input is part of a wider one"
    filters = conv.weight.permute(0, 2, 3, 1)
    assert filters.is_contiguous(), "the filters are not channels-last"
    assert conv.stride == (step, step), "the steps differ"
    lines, columns = (height + 2 * top - down) // step + 1, (width + 2 * left - right) // step + 1
    out = _empty(x.device, (images, outputs, lines, columns), x.dtype)
    rows, many = images * lines * columns, x.dtype is torch.float32 or down * right * channels > 32
    tile = Tile(64, 32, min(64, _power_of_2(outputs)), warps=8 if many else 4, stages=1)
    launch(
        _first_conv, tile.grid(rows, outputs), x, filters, conv.bias, out, rows, outputs, height, width, lines,
        columns, channels=channels, down=down, right=right, step=step, top=top, left=left, block_rows=tile.rows,
        block_inputs=tile.inputs, block_outputs=tile.outputs, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


@dataclass(frozen=True)
class Tile:
    """Rows, inputs and outputs of one program's product. tl.dot needs sides of at least 16."""

    rows: int
    inputs: int
    outputs: int
    warps: int = 4
    stages: int = 3

    def grid(self, rows: int, outputs: int) -> tuple[int, int]:
        return triton.cdiv(rows, self.rows), triton.cdiv(outputs, self.outputs)

    def constants(self, inputs: int, outputs: int) -> dict[str, Any]:
        """Returns the constants of a kernel for a product of this size."""
        sides = {"block_rows": self.rows, "block_inputs": self.inputs, "block_outputs": self.outputs}
        whole = inputs % self.inputs == 0 and outputs % self.outputs == 0
        return {"whole": whole, **sides, "num_warps": self.warps, "num_stages": self.stages}


def _tile(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> Tile:
    """Returns the tile of `norm_relu_conv`, by what was fastest on an H200 (``make verify-gpu`` prints registers).

    64 inputs of half precision fill a memory line of 128 bytes, and so do 32 of fp32. A tile has all outputs, so that
    the input is read once; 192 outputs take a tile of 256. With few rows, several programs share them, each with some
    of the outputs.
    """
    columns, programs = _power_of_2(outputs), triton.cdiv(rows, 64)
    if dtype is torch.float32:
        return Tile(64, 32, columns if programs >= _PROCESSORS else min(columns, 32), warps=8)
    if programs < _PROCESSORS // 4:
        return Tile(16, 128, min(columns, 64))
    if programs < _PROCESSORS // 2:
        columns = min(columns, 64)
    if columns > 128:
        return Tile(64, 32, columns, warps=8)
    return Tile(64, 64, columns) if inputs % 64 == 0 else Tile(64, 32, columns, stages=4)


def _power_of_2(outputs: int) -> int:
    return max(16, min(_MAX_OUTPUTS, int(triton.next_power_of_2(outputs))))


def _columns(channels: int) -> int:
    return min(_CHANNELS, int(triton.next_power_of_2(channels)))


def _matrix(x: Tensor) -> tuple[int, int]:
    """Returns the number of rows and the distance between two of them."""
    images, _, height, width = x.shape
    stride = x.stride(3)
    assert x.stride() == (height * width * stride, 1, width * stride, stride), (
        "the input is not channels-last"
    )
    return images * height * width, stride


def _empty(device: torch.device, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device, memory_format=torch.channels_last)
