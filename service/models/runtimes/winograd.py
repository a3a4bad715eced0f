"""VGG's convolutions with a quarter of the multiplications: Winograd's F(4 x 4, 3 x 3), as matrix products.

For each output pixel and pair of channels, a 3 x 3 convolution takes nine multiplications. Winograd's algorithm maps
a tile of 6 x 6 inputs, with 36 products, to 4 x 4 outputs: 2.25 multiplications. It costs two linear maps, applied
along both axes, and rounding: some 1e-6 of the largest answer in fp32, ten times that of a direct convolution. So it
is for fp32 only.

    S. Winograd, Arithmetic Complexity of Computations, SIAM 1980; for convolutional networks A. Lavin and S. Gray,
    Fast Algorithms for Convolutional Neural Networks, CVPR 2016; for the choice of points B. Barabasz et al.,
    Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks, ACM TOMS 2020.

Meanwhile images are laid out as ``[H, W, N, C]``. Each map then is one product with a constant matrix over contiguous
memory, the products over channels are one batch of 36, and no layer has to rearrange another's output.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from service.models.loader import Uint8Model
from service.models.runtimes.eager import fold_batch_norms
from service.models.vgg import VGG

#: Outputs and inputs of a tile along one axis.
_OUT, IN = 4, 6

#: Points at which the polynomials are evaluated; the sixth is infinity. The points of Lavin and Gray (0, 1, -1, 2,
#: -2) have rounding errors that are twice as large on average and three times at worst. All entries but the filters'
#: are exact in fp32.
_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)


def _matrices() -> tuple[Tensor, Tensor, Tensor]:
    """Returns the maps of inputs ``[6, 6]``, of filters ``[6, 3]`` and of products to outputs ``[4, 6]``; float64.

    The method is Toom and Cook's: a polynomial is determined by its values, and the maps' transposes turn a product
    into a correlation.
    """
    inputs, filters, outputs = np.zeros((IN, IN)), np.zeros((IN, 3)), np.zeros((_OUT, IN))
    for row, point in enumerate(_POINTS):
        others = [other for other in _POINTS if other != point]
        inputs[row, :-1] = np.poly(others)[::-1]
        filters[row] = point ** np.arange(3) / np.prod(point - np.array(others))
        outputs[:, row] = point ** np.arange(_OUT)
    inputs[-1] = np.poly(_POINTS)[::-1]
    filters[-1, -1] = outputs[-1, -1] = 1
    return torch.from_numpy(inputs), torch.from_numpy(filters), torch.from_numpy(outputs)


_INPUT, _FILTER, _OUTPUT = _matrices()

#: Channels and map sides for which it is faster (``python -m benchmarks.winograd``). With fewer channels or larger
#: maps the linear maps cost more than the products save; on smaller maps the filters, four times as many numbers,
#: take longer to read than to use.
_CHANNELS = 128
_SIDES = range(20, 65)

#: Bytes of one image's products above which a map is computed in strips, to fit the caches.
_STRIP = 4 << 20


def features(model: Uint8Model, height: int, width: int) -> nn.Sequential | None:
    """Returns layers to replace ``model.network.features`` for images of this size; None if nothing would be faster.

    The layers are to be translated and not run. They are for a VGG in fp32, and hold a copy of the filters that they
    change.
    """
    if not isinstance(model.network, VGG):
        return None
    return _rewritten(model.network.features, height, width)


def _rewritten(layers: nn.Sequential, height: int, width: int) -> nn.Sequential | None:
    """Returns ``layers`` with the first run of suitable convolutions replaced; None without one."""
    own = nn.Sequential(*layers)  # the model's own layers stay unchanged
    fold_batch_norms(own)
    places = _places(own, height, width)
    suitable = [suits(place.layer, place.height, place.width) for place in places]
    convolves = [isinstance(place.layer, nn.Conv2d) for place in places]
    if not any(suitable):
        return None
    first = suitable.index(True)
    end = next((i for i in range(first, len(places)) if convolves[i] and not suitable[i]), len(places))
    last = max(i for i in range(first, end) if suitable[i])
    inside = [_inside(place) for place in places[first : last + 1]]
    before, after = ([place.layer for place in part] for part in (places[:first], places[last + 1 :]))
    return nn.Sequential(*before, Swap(), *inside, Swap(), *after).requires_grad_(False)


class _Place(NamedTuple):
    """A layer and the size of its input."""

    layer: nn.Module
    height: int
    width: int


def _places(layers: nn.Sequential, height: int, width: int) -> list[_Place]:
    places = []
    for layer in layers:
        places.append(_Place(layer, height, width))
        if isinstance(layer, nn.MaxPool2d):
            height, width = height // 2, width // 2
    return places


def suits(layer: nn.Module, height: int, width: int) -> bool:
    """Returns True if ``layer`` is a convolution that is faster by Winograd's algorithm on maps of this size."""
    return (
        isinstance(layer, nn.Conv2d)
        and min(layer.in_channels, layer.out_channels) >= _CHANNELS
        and height in _SIDES
        and width in _SIDES
    )


def _inside(place: _Place) -> nn.Module:
    if isinstance(place.layer, nn.Conv2d):
        return WinogradConv2d(place.layer, place.height, place.width)
    if isinstance(place.layer, nn.MaxPool2d):
        return WinogradMaxPool2d(place.height, place.width)
    return place.layer  # a ReLU, and an Identity in place of a norm, work on any layout


class Swap(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """Swaps ``[N, C, H, W]`` → ``[H, W, N, C]``, and back."""
        return x.permute(2, 3, 0, 1)


class WinogradMaxPool2d(nn.Module):
    """Max-pooling of 2 x 2; an odd last row or column is dropped."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = 2 * (height // 2), 2 * (width // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Pools ``[H, W, N, C]`` → ``[H // 2, W // 2, N, C]``."""
        # Not amax over a reshaped axis, for which OpenVINO has only a slow reference implementation.
        x = torch.maximum(x[0 : self.height : 2], x[1 : self.height : 2])
        return torch.maximum(x[:, 0 : self.width : 2], x[:, 1 : self.width : 2])


class WinogradConv2d(nn.Module):
    """A 3 x 3 convolution with padding 1 on maps of one size: float ``[H, W, N, C]`` → ``[H, W, N, C']``."""

    def __init__(self, convolution: nn.Conv2d, height: int, width: int) -> None:
        super().__init__()
        assert (convolution.kernel_size, convolution.stride, convolution.padding) == ((3, 3), (1, 1), (1, 1))
        assert convolution.bias is not None
        self.width = width
        self.bias = convolution.bias.detach()
        self.filters = _filters(convolution.weight.detach())  # [6, 6, C, C'], columns first
        across = _strip(width, 0, -(-width // _OUT))
        self.tiles = across.tiles
        self.columns = across.inputs.reshape(IN, 1, across.tiles, width)
        self.back = across.outputs
        most = _STRIP // (4 * IN * IN * across.tiles * max(self.filters.shape[2:]))
        self.strips = _strips(height, most)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, self.width * x.shape[2] * x.shape[3])
        strips = [self.strip(x, strip) for strip in self.strips]
        return torch.cat(strips) if len(strips) > 1 else strips[0]

    def strip(self, x: Tensor, strip: Strip) -> Tensor:
        """Returns some rows of the result, from ``[H, W * N * C]``."""
        channels, filters = self.filters.shape[2:]
        along = IN * strip.tiles
        # Comments name the axes: h and w are pixels, i and j tiles, r and s positions in a mapped tile.
        y = torch.matmul(strip.inputs, x[strip.first : strip.stop])  # ri, w n c
        y = torch.matmul(self.columns, y.reshape(1, along, self.width, -1))  # s, ri, j, n c
        y = torch.matmul(y.reshape(IN, IN, -1, channels), self.filters)  # s, r, i j n, c'
        y = torch.matmul(strip.outputs, y.reshape(IN, along, -1))  # s, h, j n c'
        y = y.reshape(IN, strip.rows, self.tiles, -1).transpose(0, 1)  # h, s, j, n c'
        y = torch.matmul(self.back, y.reshape(strip.rows, IN * self.tiles, -1))  # h, w, n c'
        return y.reshape(strip.rows, self.width, -1, filters) + self.bias


class Strip(NamedTuple):
    """Neighbouring tiles along one axis, with their inputs and outputs."""

    first: int
    stop: int
    """The range of the inputs; positions outside are zero and left out."""
    tiles: int
    rows: int
    """The number of outputs; the last tile may have fewer than four."""
    inputs: Tensor
    """The map of inputs, ``[6 * tiles, inputs]``: products first, then tiles."""
    outputs: Tensor
    """The map to outputs, ``[rows, 6 * tiles]``."""


def _strips(length: int, most: int) -> list[Strip]:
    """Splits an axis of ``length`` into equal strips of up to ``most`` tiles, and at least one tile."""
    tiles = -(-length // _OUT)
    count = -(-tiles // max(1, most))
    each = -(-tiles // count)
    return [_strip(length, first, min(each, tiles - first)) for first in range(0, tiles, each)]


def _strip(length: int, tile: int, tiles: int) -> Strip:
    first, stop = max(0, _OUT * tile - 1), min(length, _OUT * (tile + tiles) + 1)
    rows = min(length, _OUT * (tile + tiles)) - _OUT * tile
    inputs = torch.zeros(IN, tiles, stop - first)
    outputs = torch.zeros(rows, IN, tiles)
    for number in range(tiles):
        start = _OUT * (tile + number) - 1  # the first input of the tile
        for offset in range(IN):
            if first <= start + offset < stop:
                inputs[:, number, start + offset - first] = _INPUT[:, offset].float()
        end = min(_OUT, rows - _OUT * number)
        outputs[_OUT * number :, :, number][:end] = _OUTPUT[:end].float()
    return Strip(first, stop, tiles, rows, inputs.flatten(0, 1), outputs.flatten(1))


def _filters(weight: Tensor) -> Tensor:
    """Maps filters ``[C', C, 3, 3]`` → ``[6, 6, C, C']`` (columns, then rows), computed in double precision."""
    return torch.einsum("rh,sw,oihw->srio", _FILTER, _FILTER, weight.double()).float().contiguous()
