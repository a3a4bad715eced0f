"""Every network on a CUDA device that is not there: devices, types, memory formats, and what it costs.

`make verify-gpu` runs them all; here are the two of the goals and the odd ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks.paper.trace import CUDA, Access, Paper, Trace  # it needs the above
from service.models.catalog import VARIANTS
from service.models.configuration import Configuration, DenseNetConfig, VGGConfig
from service.models.head import Activate, Adapt, Flatten, Layer, Linear, Nonlinearity, Norm, Pool, Pooling
from service.models.runtimes.whole import DTYPES
from service.shared.buckets import SIZES

IMAGE = (224, 224, 3)
CHAIN = (
    Pool("catavgmax"),
    Norm("1", 2 * 30),
    Linear("3", 2 * 30, 16),
    Activate("relu"),
    Norm("5", 16),
    Linear("7", 16, 5),
)
#: Heads, stems and pools that torchvision's networks do not have.
ODD: dict[str, Configuration] = {
    "densenet, no stem pool": DenseNetConfig((2, 2), 8, 8, num_classes=5, stem_pool=False),
    "densenet, Keras": DenseNetConfig((2, 2), 8, 8, num_classes=5, padding="same", head_pooling="max"),
    "densenet, blurred": DenseNetConfig((2, 2), 8, 12, num_classes=5, deep_stem=(6, 6), blur=True),
    "densenet, grey": DenseNetConfig((2, 2), 12, 20, num_classes=5, channels=1),
    "vgg, sliding": VGGConfig(((8,), (12,)), hidden=20, num_classes=7, head="sliding"),
    "vgg, legacy": VGGConfig(((8,), (12,)), hidden=20, num_classes=7, head="legacy"),
    "vgg, flatten": VGGConfig(((8,), (12,)), hidden=20, num_classes=7, head="flatten", image_size=(224, 224)),
    "vgg, valid": VGGConfig(((8,), (12,)), hidden=20, num_classes=7, head="valid", head_pooling="max"),
    "densenet, a head of layers": DenseNetConfig((2, 2), 8, 12, num_classes=5, layers=CHAIN),
    "no head": VGGConfig(((8,), (12,)), num_classes=0),
}


def _head(width: int, pooling: Pooling, between: Sequence[Nonlinearity], classes: int) -> tuple[Layer, ...]:
    """As a file of somebody's own has it: pooling, norms, dense layers and what stands between them."""
    values = width * (2 if pooling.startswith("cat") else 1)
    layers: list[Layer] = [Pool(pooling), Norm("0", values), Linear("1", values, 16, bias=False)]
    for number, by in enumerate(between, start=2):
        layers += [Activate(by), Linear(str(number), 16, 16)]
    return (*layers, Norm("8", 16), Linear("9", 16, classes))


#: Every pooling with each family, and every nonlinearity there is; one logit among them.
HEADS: dict[str, Configuration] = {}
for _number, _pooling in enumerate(get_args(Pooling)):
    _between, _classes = get_args(Nonlinearity)[3 * _number : 3 * _number + 3], _number + 1
    HEADS[f"densenet, {_pooling}, {', '.join(_between)}"] = DenseNetConfig(
        (2, 2), 8, 12, num_classes=_classes, layers=_head(30, _pooling, _between, _classes)
    )
    HEADS[f"vgg, {_pooling}, {', '.join(_between)}"] = VGGConfig(
        ((8,), (12,)), num_classes=_classes, layers=_head(12, _pooling, _between, _classes)
    )
HEADS |= {
    f"vgg, averaged to {side}": VGGConfig(
        ((8,), (12,)), num_classes=5, layers=(Adapt((side, side)), Flatten(), Linear("0", 12 * side**2, 5))
    )
    for side in (1, 2, 5)
}


#: What gives another format, and why it may: a head that flattens the map turns it once, into the order of its weights;
#: torch's reflecting pad, of blurred stems alone, knows no other, and a mean keeps what it is given.
TURNING = {"clone", "reflection_pad2d", "avg_pool2d"}
#: Megabytes of activations an image in fp16, and kernels a forward pass, at most: what they are, and a little.
COSTS = {"densenet121": (47.5, 130), "vgg16": (61.8, 28)}


def check(trace: Trace, precision: str, *, fused: bool) -> None:
    """Asserts at every step what the device would have to be given."""
    dtype = DTYPES[precision]
    floats = {dtype} if fused else {dtype, torch.float32}  # the plain ones normalise in fp32
    assert trace.features is not None
    assert trace.answers is not None
    assert trace.features.dtype == trace.answers.dtype == dtype
    assert len(trace.features) == len(trace.answers) == trace.images
    for operation in trace.operations:
        accesses = [*operation.reads, *operation.writes]
        assert {access.device for access in accesses} == {CUDA}, operation
        assert all(access.dtype != torch.float64 for access in accesses), operation
        for access in operation.writes:
            if len(access.shape) > 1:  # a norm notes its statistics in fp32
                assert not access.dtype.is_floating_point or access.dtype in floats, operation
            if fused and access.dtype == dtype and len(access.shape) == 4 and operation.name not in TURNING:
                assert is_channels_last(access), operation

    assert sum(operation.name == "clone" for operation in trace.operations) <= 1


def is_channels_last(access: Access) -> bool:
    """Whether neighbours in memory are a pixel's channels, perhaps of a wider buffer."""
    _, _, height, width = access.shape
    _, channel, row, pixel = access.strides
    return channel == 1 and (height == 1 or row == width * pixel) and (width == 1 or pixel >= access.shape[1])


def run(configuration: Configuration, precision: str, fused: bool, *images: int) -> list[Trace]:
    paper = Paper(configuration, precision, fuse=fused, classes=configuration.num_classes > 0)
    image: Any = IMAGE
    traces = [paper.run(count, image) for count in images]
    for trace in traces:
        check(trace, precision, fused=fused)
    return traces


@pytest.mark.parametrize("name", ODD)
def test_odd_networks_stay_on_the_device_in_their_precision(name: str) -> None:
    for precision in ("fp16", "fp32"):
        run(ODD[name], precision, True, 5)
    run(ODD[name], "fp16", False, 1)


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_ones_own_stay_on_the_device_in_their_precision(name: str) -> None:
    run(HEADS[name], "fp16", True, 3)
    run(HEADS[name], "bf16", False, 2)


@pytest.mark.slow
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", HEADS)
def test_heads_of_ones_own_in_every_bucket(name: str, precision: str) -> None:
    for fused in (True, False):
        run(HEADS[name], precision, fused, *SIZES)


@pytest.mark.parametrize("name", COSTS)
def test_a_network_passes_over_memory_no_more_often_than_it_did(name: str) -> None:
    alone, full = run(VARIANTS[name].configuration, "fp16", True, 1, 256)
    megabytes, kernels = COSTS[name]
    assert len(alone.operations) == len(full.operations) <= kernels
    assert (full.bytes - full.weight_bytes) / 256 / 1e6 <= megabytes
    wide = {
        operation.name for operation in full.operations for a in operation.writes if a.dtype == torch.int64
    }
    assert not wide, "indices that nobody reads"


@pytest.mark.slow
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_network_in_every_bucket(name: str, precision: str) -> None:
    for fused in (True, False):
        run(VARIANTS[name].configuration, precision, fused, *SIZES)
