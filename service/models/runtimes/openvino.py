"""OpenVINO on the CPU: torch's numbers to the fifth digit, at the processor's full speed.

There are three executors, since none is the best for every model and every number of cores:

    together       all cores work on the layers of one batch      large layers, few images, many cores
    one            the same for an image alone, its shape fixed   one image: the lowest latency
    apart          every core has an image of its own             small layers: no core waits for another

The last two have fixed shapes, which saves a DenseNet copies in its concatenations, and read the images directly
from the arena. An executor is compiled when it is first used, so an unused one costs nothing. This module imports no
torch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from service.errors import ConfigurationError
from service.host.usage import trim_memory
from service.models.openvino_import import openvino
from service.models.runtimes import Answer, Executor, Gather, Pixels, Stream, artifact, onnx_runtime
from service.models.runtimes.artifact import Converted, Graph
from service.models.runtimes.machine import Notes

log = logging.getLogger(__name__)

#: Most bytes of weights for several executors, since each compiles the model with its own copy of the weights. Only
#: VGG's dense layers are larger, and these are fastest with their images together.
_SMALL = 256 << 20

#: Passes that decide between two graphs.
_PASSES = 4


class OpenVino:
    """A converted model on this host's processor. ``cores`` is the number of computing threads.

    Raises `ConfigurationError` for a precision that the processor lacks.
    """

    name = "openvino"
    max_batch_size: int | None = None

    def __init__(self, graph: Graph, precision: str, cores: int, notes: Notes | None = None) -> None:
        self.precision = precision
        self._graph, self._cores, self._notes = graph, cores, notes or Notes()
        self._core = openvino.Core()
        if precision == "bf16" and "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ConfigurationError("precision=bf16: this processor computes nothing in bf16; use fp32")
        self._executors: dict[str, _Any] = {}

    def executors(self) -> list[Executor]:
        executors: list[_Any] = [_BatchExecutor("together", self._compiled("together", None, 1))]
        if self._graph.nbytes <= _SMALL:
            for stream_count in sorted({1, self._cores}):
                name = "one" if stream_count == 1 else "apart"
                executors.append(_StreamExecutor(name, self._compiled(name, 1, stream_count), stream_count))
            executors += self._others()
        # Existing executors have compiled what they need.
        self._executors = {
            executor.name: self._executors.get(executor.name, executor) for executor in executors
        }
        return list(self._executors.values())

    def _others(self) -> list[onnx_runtime.OnnxBatchExecutor | onnx_runtime.OnnxStreamExecutor]:
        """Returns the executors of ONNX Runtime, if it is installed: those with measured times, or those that work
        now."""
        if self.precision != "fp32" or not onnx_runtime.is_installed():
            return []
        executors, known = onnx_runtime.executors(self._graph, self._cores), self._notes.read()
        return [
            executor
            for executor in executors
            if (executor.works() if known is None else executor.name in known.times)
        ]

    def another(self) -> OpenVino | None:
        if self._graph.nbytes > _SMALL:
            return None
        return OpenVino(self._graph, self.precision, self._cores, self._notes)

    def settle(self, names: Sequence[str]) -> bool:
        """Keeps the compiled models of these executors, and releases the memory that compiling took."""
        self._executors = {name: self._executors[name] for name in names}
        with ThreadPoolExecutor() as threads:
            anew = any([*threads.map(self._keep, self._executors.values())])
        for executor in self._executors.values():
            if isinstance(executor, _Lazy):
                executor.let_go()
        self._graph.let_go()
        trim_memory()
        return anew

    def _keep(self, executor: _Any) -> bool:
        """Writes the compiled model into a file and reloads it from there. Returns False if that was not needed or
        failed."""
        if not isinstance(executor, _BatchExecutor | _StreamExecutor):
            return False
        if (
            self._graph.nbytes > _SMALL
            or executor.compiled is None
            or self._notes.blob(executor.name) is not None
        ):
            return False
        if self._notes.keep(executor.name, executor.compiled.export_model().getvalue()) is None:
            return False
        # Loaded from its file it takes less memory: the weights are pages of the file.
        executor.reset(self._compiled(executor.name, executor.images, executor.stream_count))
        executor.prepare()
        return True

    def _compiled(self, name: str, images: int | None, stream_count: int) -> Callable[[], _Compiled]:
        return partial(self._compile, name, images, stream_count)

    def _compile(self, name: str, images: int | None, stream_count: int) -> _Compiled:
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": self._cores,
            "NUM_STREAMS": stream_count,
            # The front-ends decode on the same cores, so the kernel places threads better than pinning does.
            "ENABLE_CPU_PINNING": False,
        }
        path = self._notes.blob(name)
        if path is not None:
            try:
                memory = artifact.mapped(path)
                tensor = openvino.Tensor(np.frombuffer(memory, np.uint8), shared_memory=True)
                return _Compiled(self._core.import_model(tensor, "CPU", options), memory)
            except (RuntimeError, OSError, ValueError) as error:
                log.warning(
                    "the compiled model %s cannot be used: %s", path.name, str(error).splitlines()[-1]
                )
        model = self._graph.model()
        if images is not None:
            model = model.clone()
            image = list(model.inputs[0].partial_shape)[1:]
            model.reshape(openvino.PartialShape([images, *image]))
        return _Compiled(self._core.compile_model(model, "CPU", options))


@dataclass
class _Compiled:
    """A compiled model; ``memory`` is the mapped file that it was loaded from."""

    model: Any
    memory: Any = None


class _Lazy:
    """A model that is compiled at its first use."""

    def __init__(self, compile: Callable[[], _Compiled]) -> None:
        self._compile = compile
        self._made: _Compiled | None = None

    @property
    def compiled(self) -> openvino.CompiledModel | None:
        return self._made.model if self._made else None

    def prepare(self) -> openvino.CompiledModel:
        """Compiles, unless that was done, and returns the model."""
        self._made = self._made or self._compile()
        return self._made.model

    def let_go(self) -> None:
        """Releases the pages of the file that compiling has read."""
        if self._made is not None and self._made.memory is not None:
            artifact.forget(self._made.memory)


class _BatchExecutor(_Lazy):
    images: int | None = None
    parallelism: int | None = None
    stream_count = 1

    def __init__(self, name: str, compile: Callable[[], _Compiled]) -> None:
        super().__init__(compile)
        self.name = name
        self._request: Any = None
        self._gather = Gather()

    def reset(self, compile: Callable[[], _Compiled]) -> None:
        self._compile, self._made, self._request = compile, None, None

    def __call__(self, pixels: Pixels, slots: Sequence[int]) -> list[Answer]:
        if self._request is None:
            self._request = self.prepare().create_infer_request()
        batch = self._gather(pixels, slots)
        self._request.set_input_tensor(openvino.Tensor(batch, shared_memory=True))
        self._request.infer()
        return _answers(self._request)

    def stop(self) -> None:
        if self._request is not None:
            self._request.cancel()


class _StreamExecutor(_Lazy):
    """An executor with one request an image; ``stream_count`` of them run at once."""

    images: int | None = 1

    def __init__(self, name: str, compile: Callable[[], _Compiled], stream_count: int) -> None:
        super().__init__(compile)
        self.name = name
        self.stream_count = stream_count
        self.parallelism: int | None = stream_count
        self._singles: list[_InferRequest] = []

    def reset(self, compile: Callable[[], _Compiled]) -> None:
        self._compile, self._made, self._singles = compile, None, []

    def __call__(self, pixels: Pixels, slots: Sequence[int]) -> list[Answer]:
        singles = self._requests(len(slots))
        if len(slots) == 1:
            return [singles[0](pixels, slots[0])]
        try:
            for single, slot in zip(singles, slots, strict=True):
                single.start(pixels, slot)
        finally:
            # Waited for even if one failed: the others read the arena until they are done.
            errors = [error for single in singles if (error := _finished(single.request))]
        if errors:
            raise errors[0]
        return [single.answer for single in singles]

    def streams(self) -> list[Stream]:
        # The requests of a batch: images run either in streams or as a batch, never both at a time.
        return list(self._requests(self.stream_count))

    def stop(self) -> None:
        for single in list(self._singles):
            single.request.cancel()

    def _requests(self, count: int) -> list[_InferRequest]:
        while len(self._singles) < count:
            self._singles.append(_InferRequest(self.prepare()))
        return self._singles[:count]


class _InferRequest:
    """A request for one image, and a `Stream`. Its answer is always in the same memory."""

    def __init__(self, compiled: openvino.CompiledModel) -> None:
        self.request = compiled.create_infer_request()
        outputs = [np.empty(list(port.shape), np.float32) for port in compiled.outputs]
        for number, output in enumerate(outputs):
            self.request.set_output_tensor(number, openvino.Tensor(output, shared_memory=True))
        features, logits = (*outputs, np.empty((1, 0), np.float32))[:2]
        self.answer = Answer(features[0], logits[0])

    def __call__(self, pixels: Pixels, slot: int) -> Answer:
        self._look_at(pixels, slot)
        self.request.infer()
        return self.answer

    def start(self, pixels: Pixels, slot: int) -> None:
        self._look_at(pixels, slot)
        self.request.start_async()

    def _look_at(self, pixels: Pixels, slot: int) -> None:
        self.request.set_input_tensor(openvino.Tensor(pixels[slot : slot + 1], shared_memory=True))


_Any = _BatchExecutor | _StreamExecutor | onnx_runtime.OnnxBatchExecutor | onnx_runtime.OnnxStreamExecutor


def _finished(request: openvino.InferRequest) -> RuntimeError | None:
    try:
        request.wait()
    except RuntimeError as error:
        return error
    return None


def _answers(request: openvino.InferRequest) -> list[Answer]:
    """Returns a request's answers without copying them."""
    features = request.get_output_tensor(0).data
    has_head = len(request.model_outputs) > 1
    logits = request.get_output_tensor(1).data if has_head else np.empty((len(features), 0), np.float32)
    return [Answer(*row) for row in zip(features, logits, strict=True)]


def runtime(
    converted: Converted, precision: str, cores: int, image: tuple[int, int, int], notes: Notes | None = None
) -> OpenVino:
    """Returns a runtime with the graph that is faster on this host, by the notes or by a measurement."""
    notes = notes or Notes()
    measured = notes.read()
    known = measured is not None and measured.graph in converted.graphs
    names = [measured.graph] if measured and known else [*converted.graphs]
    candidates = {name: OpenVino(converted.graphs[name], precision, cores, notes) for name in names}
    notes.graph = names[0] if len(names) == 1 else faster(candidates, image)
    return candidates[notes.graph]


def faster(candidates: Mapping[str, OpenVino], image: tuple[int, int, int]) -> str:
    """Returns the name of the candidate that runs one image fastest."""
    times = {name: _milliseconds(candidate, image) for name, candidate in candidates.items()}
    log.info("one image: %s", ", ".join(f"{took:.1f} ms by {name}" for name, took in times.items()))
    return min(times, key=lambda name: times[name])


def _milliseconds(runtime: OpenVino, image: tuple[int, int, int]) -> float:
    """Best time of a few passes with one image, without the first pass."""
    executor, pixels = runtime.executors()[0], np.zeros((1, *image), np.uint8)
    times = []
    for _ in range(_PASSES):
        began = time.monotonic()
        executor(pixels, [0])
        times.append(1000 * (time.monotonic() - began))
    return min(times[1:])
