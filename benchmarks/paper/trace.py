"""Traces a network on a fake CUDA device: every operation with the tensors that it would read and write.

torch's fake tensors have a device, a type, a shape and strides, and no memory. What a network does with them is what
it would do on a device, up to the kernels themselves: those of Triton are noted and not started, and for cuDNN's
convolution with ReLU, which fake tensors do not know, stands one of the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from service.models import fused
from service.models.configuration import Configuration
from service.models.cuda import resize_kernel
from service.models.fused import kernels, ops
from service.models.loader import Uint8Model
from service.models.network import build
from service.models.runtimes.whole import whole
from service.preprocess import IMAGENET_MEAN, IMAGENET_STD

META, CUDA = torch.device("meta"), torch.device("cuda", 0)

#: Operations of torch that start no kernel.
_FREE = frozenset(
    (
        "empty",
        "empty_strided",
        "empty_like",
        "new_empty",
        "view",
        "_unsafe_view",
        "permute",
        "slice",
        "as_strided",
        "expand",
        "t",
        "transpose",
        "unsqueeze",
        "squeeze",
        "detach",
        "alias",
        "split",
        "split_with_sizes",
        "select",
        "unbind",
        "lift_fresh",
        "as_strided_",
        "device",
    )
)
_CONVOLUTIONS = ("convolution", "cudnn_convolution_relu", "_conv3x3", "_norm_relu_matmul", "_first_conv")


@dataclass(frozen=True)
class Access:
    """One tensor that an operation reads or writes."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    offset: int

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Operation:
    """One kernel; torch's and this project's count alike. ``flops`` counts a multiply-add as two."""

    name: str
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]
    flops: float
    weights: tuple[Access, ...] = ()
    """The tensors of ``reads`` that are parameters and buffers, which do not grow with the batch."""


@dataclass(frozen=True)
class Launch:
    """A launch of a Triton kernel: its arguments in order, tensors as `Access`, and its constants."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Access | int, ...]
    constants: dict[str, int]


def resizing(photos: int, shape: tuple[int, int, int]) -> Launch:
    """Returns the launch that resizes photos of ``decode=gpu`` to uint8 ``[photos, *shape]``."""
    fields = resize_kernel.CONSTANTS["fields"]
    described = Access((photos, fields), (fields, 1), torch.int64, CUDA, 0)
    out = Access((photos, *shape), (prod(shape), shape[1] * shape[2], shape[2], 1), torch.uint8, CUDA, 0)
    programs = -(-prod(shape) // resize_kernel.CONSTANTS["block"])
    return Launch(
        resize_kernel.resize, (photos, programs), (described, out, *shape[:2]), resize_kernel.CONSTANTS
    )


@dataclass
class Trace:
    """A trace of one forward pass of ``images``."""

    images: int
    operations: list[Operation] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    features: Tensor | None = None
    answers: Tensor | None = None

    @property
    def bytes(self) -> int:
        """All bytes read and written, as if no cache kept anything between two kernels."""
        return sum(a.bytes for o in self.operations for a in (*o.reads, *o.writes))

    @property
    def weight_bytes(self) -> int:
        return sum(access.bytes for operation in self.operations for access in operation.weights)

    @property
    def flops(self) -> float:
        return sum(operation.flops for operation in self.operations)


class _Recorder(TorchDispatchMode):
    def __init__(self, trace: Trace, parameters: set[int]) -> None:
        super().__init__()
        self.trace, self._parameters = trace, parameters
        self.silent = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if self.silent or name in _FREE:
            return result
        if name == "convolution":
            # As cuDNN does if pixels or filters are channels-last; a build of torch without it returns another
            # format.
            result = torch.empty_like(result, memory_format=torch.channels_last)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        # A tensor that is written is an argument too; it is read only if the operation works in place.
        fresh = [t for t in given if not any(t is other for other in made) or name.endswith("_")]
        if name in ("copy_", "fill_", "zero_"):
            fresh = given[1:]
        self.note(name, fresh, made)
        return result

    def note(self, name: str, reads: Sequence[Tensor], writes: Sequence[Tensor]) -> None:
        own = [tensor for tensor in reads if self._is_weight(tensor)]
        self.trace.operations.append(
            Operation(name, _all(reads), _all(writes), _flops(name, reads, writes), _all(own))
        )

    def _is_weight(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._parameters


def _all(tensors: Sequence[Tensor]) -> tuple[Access, ...]:
    return tuple(map(_access, tensors))


def _access(tensor: Tensor) -> Access:
    return Access(
        tuple(tensor.shape),
        tuple(tensor.stride()),
        tensor.dtype,
        tensor.device,
        int(tensor.storage_offset()),
    )


def _flops(name: str, reads: Sequence[Tensor], writes: Sequence[Tensor]) -> float:
    if name in ("mm", "addmm"):
        left = reads[-2]
        return 2.0 * writes[0].numel() * left.shape[1]
    if name not in _CONVOLUTIONS:
        return 0.0
    weight = next(t for t in reads[1:] if t.dim() >= 2)
    return 2.0 * writes[0].numel() * weight.numel() / weight.shape[0]


#: The arguments of each kernel that it writes.
_OUTPUTS = {"_max_pool": 1, "_conv3x3": 2}


@contextmanager
def _kernels_noted(recorder: _Recorder) -> Iterator[None]:
    own = kernels.launch

    def note(kernel: Any, grid: tuple[int, ...], /, *arguments: Any, **constants: int) -> None:
        name = kernel.__name__
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        written = tensors[_OUTPUTS.get(name, len(tensors) - 1)]
        with _silenced(recorder):
            recorder.note(name, [tensor for tensor in tensors if tensor is not written], [written])
            seen = tuple(_access(a) if isinstance(a, Tensor) else int(a) for a in arguments)
        recorder.trace.launches.append(Launch(kernel, grid, seen, constants))

    kernels.launch = note
    try:
        yield
    finally:
        kernels.launch = own


@contextmanager
def _silenced(recorder: _Recorder) -> Iterator[None]:
    recorder.silent = True
    try:
        yield
    finally:
        recorder.silent = False


def faster(recorder: Callable[[], _Recorder | None] = lambda: None, version: int = 0) -> fused.Ops:
    """Returns all fused operations, as if a device had found each of them right and fast.

    Of operations with several versions, the one with this number.
    """
    every, missing = ops.candidates()
    assert not missing, missing
    candidates = {name: versions[min(version, len(versions) - 1)] for name, versions in every.items()}
    (cudnn,) = every["conv_relu"]

    def conv_relu(x: Tensor, conv: nn.Conv2d) -> Tensor:
        noting = recorder()
        if noting is None:
            return ops.TORCH.conv_relu(x, conv)
        with _silenced(noting):
            result: Tensor = conv(x)
            result = torch.empty_like(result, memory_format=torch.channels_last)
            noting.note(
                "cudnn_convolution_relu",
                [x, conv.weight, *[b for b in [conv.bias] if b is not None]],
                [result],
            )
        return result

    chosen: dict[str, Any] = {
        name: conv_relu if candidate is cudnn else candidate for name, candidate in candidates.items()
    }
    return replace(ops.TORCH, **chosen, names=tuple(candidates))


class Paper:
    """A network of a configuration on the fake device, fused or plain, in ``dtype``."""

    def __init__(
        self,
        configuration: Configuration,
        precision: str,
        *,
        fuse: bool,
        own: bool = True,
        classes: bool = True,
        version: int = 0,
    ) -> None:
        """Builds the network. ``own`` False takes torch's operations for all fused ones; ``version`` is `faster`'s."""
        from service.models.runtimes.whole import DTYPES

        self._recorder: _Recorder | None = None
        with torch.device(META):
            network = build(configuration)
        count = configuration.channels
        mean, std = ((0.5,) * count, (0.5,) * count) if count != 3 else (IMAGENET_MEAN, IMAGENET_STD)
        model = Uint8Model(network, count, mean, std).to(META).eval().requires_grad_(False)
        operations = faster(lambda: self._recorder, version) if own else ops.TORCH
        self.network: nn.Module = (
            fused.fuse(model, operations, META, DTYPES[precision], has_head=classes)
            if fuse
            else whole(model, META, precision, has_head=classes)
        )
        self.mode = FakeTensorMode()
        with self.mode:
            _move(self.network)

    def run(self, images: int, image: tuple[int, int, int]) -> Trace:
        """Runs one forward pass of uint8 ``[images, H, W, C]`` and returns its trace."""
        trace = Trace(images)
        own = {t.untyped_storage()._cdata for t in [*self.network.parameters(), *self.network.buffers()]}
        with self.mode, torch.no_grad():
            pixels = torch.empty((images, *image), dtype=torch.uint8, device=CUDA)
            self._recorder = _Recorder(trace, own)
            with patch.object(Tensor, "copy_", _copy), self._recorder, _kernels_noted(self._recorder):
                trace.features, trace.answers = self.network(pixels)
            self._recorder = None
        return trace


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """Replaces `Tensor.copy_`, which torch without CUDA refuses for the fake device."""
    copied: Tensor = torch.ops.aten.copy_.default(target, source, non_blocking)
    return copied


def _move(network: nn.Module) -> None:
    """Moves parameters and buffers to the device. (``Module.to`` would leave meta tensors behind.)"""
    for module in network.modules():
        for place in (module._parameters, module._buffers):
            for name, tensor in place.items():
                if tensor is not None:
                    moved = torch.empty_strided(
                        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA
                    )
                    place[name] = nn.Parameter(moved, False) if place is module._parameters else moved  # type: ignore[assignment]
