"""`service.models.cuda.device.Device` by torch.cuda."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from service.models.cuda import host_memory
from service.models.cuda.device import Event, Work
from service.models.runtimes import Pixels
from service.shared.batches import Memory
from service.shared.fallback import sentence

#: Messages of CUDA's libraries that mean out of memory without being a `torch.OutOfMemoryError`.
_NO_MEMORY = (
    "out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)


class _Event:
    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    def done(self) -> bool:
        try:
            return bool(self.event.query())
        except RuntimeError:
            return True  # `wait` raises the reason

    def wait(self) -> None:
        self.event.synchronize()


class _Stream:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream = stream

    def copy(self, target: Tensor, source: Tensor) -> None:
        self.copy_all([(target, source)])

    def copy_all(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        # To enter the stream takes the host longer than to enqueue a copy.
        with torch.cuda.stream(self.stream), torch.inference_mode():
            for target, source in pairs:
                target.copy_(source, non_blocking=True)

    def run(self, work: Work) -> None:
        with torch.cuda.stream(self.stream), torch.inference_mode():
            work()

    def wait(self, event: Event) -> None:
        assert isinstance(event, _Event)
        self.stream.wait_event(event.event)

    def record(self) -> Event:
        # Blocking: a thread that waits for it leaves the core to the decoders.
        event = torch.cuda.Event(blocking=True)
        event.record(self.stream)
        return _Event(event)


class CudaDevice:
    """The CUDA device ``cuda`` or ``cuda:N``."""

    def __init__(self, name: str) -> None:
        device = torch.device(name)
        self.device = torch.device(
            "cuda", torch.cuda.current_device() if device.index is None else device.index
        )
        #: One pool for all graphs: they never run at the same time, so they can share memory.
        self._pool: Any = None

    def stream(self) -> _Stream:
        return _Stream(torch.cuda.Stream(self.device))

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, device=self.device)

    def staging(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)

    def adopt(self, pixels: Pixels) -> Tensor | str:
        try:
            with torch.cuda.device(self.device):
                refused = host_memory.register(pixels, host_memory.driver())
        except OSError as error:
            refused = sentence(error)
        return refused or torch.from_numpy(pixels)

    def capture(self, work: Work, stream: Any) -> Work:
        assert isinstance(stream, _Stream)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self.device)
        # No memory can be released during a capture, and what earlier runs took would be held twice.
        torch.cuda.empty_cache()
        # On the stream of those runs, whose cuBLAS workspace exists; another stream would allocate its own in the
        # pool.
        with torch.cuda.stream(stream.stream), torch.inference_mode():
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
            except BaseException:
                # Ending a broken capture raises as well, and would hide the first error.
                with contextlib.suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()
        return graph.replay

    def memory(self) -> Memory:
        free, total = torch.cuda.mem_get_info(self.device)
        return Memory(total - free, total)

    def release(self) -> None:
        self._pool = None
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()

    def out_of_memory(self, error: Exception) -> bool:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)

    def failure(self, error: Exception) -> str:
        """Checks the device: a persistent error is returned by every later call, so the next call reveals it."""
        try:
            torch.cuda.synchronize(self.device)
            torch.cuda.mem_get_info(self.device)
        except RuntimeError as still:
            return f"{self.device}: {str(still).splitlines()[0]}"
        return ""
