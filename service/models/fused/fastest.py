"""The choice among several versions of one operation: the first call of a size times them on its own arguments."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Operation = Callable[..., Any]
#: Returns the seconds of one call of a function on the device.
Timer = Callable[[Callable[[], object]], float]

#: Number of calls in a row that are timed, and how often; the shortest counts.
_CALLS, _ROUNDS = 5, 3


class Fastest:
    """An operation that runs the fastest of ``versions``, all with the same results, for each size of its tensors.

    Sizes decide: which version is fastest depends on how many programs a size makes. While a CUDA graph is captured,
    nothing can be timed; a size that was never seen before then takes the first version.
    """

    def __init__(self, versions: Sequence[Operation], seconds: Timer) -> None:
        self._versions, self._seconds = versions, seconds
        self._known: dict[tuple[torch.Size, ...], Operation] = {}

    def __call__(self, *arguments: Any) -> Any:
        size = tuple(argument.shape for argument in arguments if isinstance(argument, Tensor))
        version = self._known.get(size)
        if version is None:
            if arguments[0].is_cuda and torch.cuda.is_current_stream_capturing():
                return self._versions[0](*arguments)
            version = self._known[size] = self._fastest(arguments)
        return version(*arguments)

    def _fastest(self, arguments: Sequence[Any]) -> Operation:
        times = [self._seconds(lambda version=version: version(*arguments)) for version in self._versions]  # type: ignore[misc]
        log.debug("%s: %s us", tuple(arguments[0].shape), ", ".join(f"{1e6 * time:.1f}" for time in times))
        return self._versions[times.index(min(times))]


def device_seconds(work: Callable[[], object]) -> float:
    """Returns the seconds of a call on the current CUDA device.

    Some calls are captured in a graph, so that the time in which the host starts them does not count: for small
    batches it is longer than the work itself.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
        work()  # libraries choose their kernel in the first call and allocate its memory in the second
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for _ in range(_CALLS):
                work()
        finally:
            graph.capture_end()
        times: list[float] = []
        for _ in range(_ROUNDS):
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            graph.replay()
            ended.record()
            ended.synchronize()
            times.append(began.elapsed_time(ended) / 1000 / _CALLS)
    return min(times)
