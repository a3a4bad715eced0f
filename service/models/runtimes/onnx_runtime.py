"""ONNX Runtime as two more executors of a converted model, if it is installed (the extra ``onnx``).

On a processor with AVX2 and no newer extension, ONNX Runtime's kernels may be the faster ones. The warm-up measures,
and executors that the plan does not take are dropped.

    onnxruntime          all cores work on the layers of one batch
    onnxruntime apart    every core has an image of its own
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from service.models.runtimes import Answer, Gather, Pixels, Stream
from service.models.runtimes.artifact import Graph

log = logging.getLogger(__name__)

#: ONNX Runtime's log level for errors: in a container it would warn of cores that it may not use.
_ERRORS = 3


def is_installed() -> bool:
    """Returns True if the extra is installed."""
    return find_spec("onnxruntime") is not None and find_spec("onnx") is not None


def executors(graph: Graph, cores: int) -> list[OnnxBatchExecutor | OnnxStreamExecutor]:
    """Returns the executors for ``graph`` on ``cores``. Each makes its session when it is first used."""
    found: list[OnnxBatchExecutor | OnnxStreamExecutor] = [OnnxBatchExecutor(partial(_session, graph, cores))]
    if cores > 1:
        found.append(OnnxStreamExecutor(partial(_session, graph, 1), cores))
    return found


def _session(graph: Graph, threads: int) -> Any:
    import onnxruntime

    from service.models.runtimes import onnx_graph

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = _ERRORS
    content = onnx_graph.translated(graph.model())
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


class _Executor:
    #: Factor on its times in a plan: the executor holds the weights once more, which a small gain does not justify.
    handicap = 1.05

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    @cached_property
    def _session(self) -> Any:
        return self._make()

    def prepare(self) -> None:
        """Makes the session. Raises any error of ONNX Runtime, and TypeError."""
        _ = self._session

    def works(self) -> bool:
        """Returns True if there is a session, or one could be made now."""
        try:
            self.prepare()
            return True
        except Exception as error:
            # The border of a library on which nothing depends.
            log.warning("onnxruntime cannot run this model: %s", (str(error) or repr(error)).splitlines()[-1])
            return False

    def _run(self, batch: Pixels) -> list[Answer]:
        features, *logits = self._session.run(None, {self._session.get_inputs()[0].name: batch})
        return [Answer(*row) for row in zip(features, *(logits or [_headless(batch)]), strict=True)]


class OnnxBatchExecutor(_Executor):
    """An `Executor` of any number of images as one batch."""

    name = "onnxruntime"
    parallelism: int | None = None

    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__(make)
        self._gather = Gather()

    def __call__(self, pixels: Pixels, slots: Sequence[int]) -> list[Answer]:
        return self._run(self._gather(pixels, slots))


class OnnxStreamExecutor(_Executor):
    """An `Executor` of ``cores`` images at a time, each on one core. It has streams."""

    name = "onnxruntime apart"

    def __init__(self, make: Callable[[], Any], cores: int) -> None:
        super().__init__(make)
        self.parallelism: int | None = cores
        self._threads = ThreadPoolExecutor(cores, "onnxruntime")

    def __call__(self, pixels: Pixels, slots: Sequence[int]) -> list[Answer]:
        self.prepare()  # one session, however many threads ask for it
        return list(self._threads.map(partial(self._one, pixels), slots))

    def streams(self) -> list[Stream]:
        return [self._one] * (self.parallelism or 1)

    def _one(self, pixels: Pixels, slot: int) -> Answer:
        return self._run(pixels[slot : slot + 1])[0]


def _headless(batch: Pixels) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.empty((len(batch), 0), np.float32)
