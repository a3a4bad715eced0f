"""Expected times of a forward pass: each kernel takes the longer of its bytes and its FLOPs, plus a gap.

The figures of the GPUs are NVIDIA's data sheets' (SXM, dense). How much of them a kernel reaches is an assumption,
one for memory, one for products: a device that does worse has a kernel that is worth a look.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.paper.trace import Operation, Trace

#: Assumed shares of the data sheet's figures: copies reach some 0.8 to 0.9 of the bandwidth, cuDNN's convolutions of
#: these sizes 0.35 to 0.65 of the products.
_OF_BANDWIDTH, _OF_PRODUCTS = 0.8, 0.5
#: Seconds between two kernels of a graph.
_GAP = 2.2e-6


@dataclass(frozen=True)
class Gpu:
    """A GPU's bytes a second, and multiply-adds times two a second."""

    name: str
    bandwidth: float
    half: float
    single: float


GPUS = (
    Gpu("A100", 2.04e12, 312e12, 19.5e12),
    Gpu("L40S", 0.864e12, 362e12, 91.6e12),
    Gpu("H100", 3.35e12, 989e12, 67e12),
    Gpu("H200", 4.8e12, 989e12, 67e12),
    Gpu("B200", 8.0e12, 2250e12, 80e12),
)


def gpu_of(name: str) -> Gpu | None:
    """Returns the GPU whose name is part of a device's name."""
    return next((gpu for gpu in GPUS if gpu.name.lower() in name.lower().replace(" ", "")), None)


def seconds(operation: Operation, gpu: Gpu, precision: str) -> float:
    moved = sum(access.bytes for access in (*operation.reads, *operation.writes))
    peak = gpu.single if precision == "fp32" else gpu.half
    return max(moved / (_OF_BANDWIDTH * gpu.bandwidth), operation.flops / (_OF_PRODUCTS * peak)) + _GAP


def images_a_second(trace: Trace, gpu: Gpu, precision: str) -> float:
    return trace.images / sum(seconds(operation, gpu, precision) for operation in trace.operations)


def arithmetic(trace: Trace, gpu: Gpu, precision: str) -> Iterator[str]:
    """Yields the figure and its parts: the kinds of kernels, the slowest first."""
    by_name: dict[str, list[Operation]] = defaultdict(list)
    for operation in trace.operations:
        by_name[operation.name].append(operation)
    took = {name: sum(seconds(one, gpu, precision) for one in group) for name, group in by_name.items()}
    total, images = sum(took.values()), trace.images
    peak = gpu.single if precision == "fp32" else gpu.half
    yield (
        f"{gpu.name}, {precision}, {images} images: {1e3 * total:.2f} ms, {images / total:,.0f} images/s = images / "
        f"sum over {len(trace.operations)} kernels of max(bytes / {_OF_BANDWIDTH} of {gpu.bandwidth / 1e12:g} TB/s, "
        f"FLOPs / {_OF_PRODUCTS} of {peak / 1e12:g} T/s) + {1e6 * _GAP:g} us"
    )
    for name in sorted(took, key=lambda name: -took[name]):
        group = by_name[name]
        moved = sum(a.bytes for one in group for a in (*one.reads, *one.writes))
        flops = sum(one.flops for one in group)
        yield (
            f"  {took[name] / total:4.0%} {name.strip('_')}: {len(group)} kernels, {moved / images / 1e6:.2f} MB and "
            f"{flops / images / 1e9:.2f} GFLOP an image"
        )
