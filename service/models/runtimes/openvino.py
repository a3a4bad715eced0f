"""OpenVINO on the CPU: the same numbers as torch to the fifth digit, at the speed of the processor.

Three ways to run a batch, since none is the best for every model and every number of cores:

    together       all cores work on the layers of one batch      large layers, few images, many cores
    one at a time  the same for an image alone, its shape fixed   one image: the lowest latency
    apart          every core has an image of its own             small layers: no core waits for another

The last two know their shapes beforehand, which saves a DenseNet copies in its concatenations, and read the
images where they lie in the arena.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from service.errors import ConfigurationError
from service.models._openvino import openvino
from service.models.checkpoints import Checkpoint
from service.models.loader import Uint8Model
from service.models.runtimes import Answer, Lane, Pixels, Way, artifact, conversion, gather, winograd
from service.models.runtimes.conversion import ConversionError

log = logging.getLogger(__name__)

#: A way compiles the model once more, with its own copy of the weights. Above this many bytes there is only
#: one way: it is VGG's dense layers that are so large, and they want their images together anyway.
_SMALL = 256 << 20

#: Passes that decide between two conversions, when one is made.
_PASSES = 6


class OpenVino:
    """A converted model on this host's processor. ``cores`` is the number of threads that compute."""

    name = "openvino"
    most: int | None = None

    def __init__(self, model: openvino.Model, precision: str, cores: int) -> None:
        self.precision = precision
        self._model = model
        self._cores = cores
        self._core = openvino.Core()
        if precision == "bf16" and "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ConfigurationError("precision=bf16: this processor computes nothing in bf16; use fp32")

    def ways(self) -> list[Way]:
        together = _Together(self._compile(None, streams=1))
        if _weights(self._model) > _SMALL:
            return [together]
        streams = {1, self._cores}
        return [together, *(_Apart(partial(self._compile, 1, count), count) for count in sorted(streams))]

    def constants(self) -> Iterator[NDArray[np.float32]]:
        """The model's weights as they lie in its file, in no order; valid as long as this is there."""
        return (operation.data for operation in _constants(self._model))

    def _compile(self, images: int | None, streams: int) -> openvino.CompiledModel:
        model = self._model
        if images is not None:
            model = model.clone()
            image = list(model.inputs[0].partial_shape)[1:]
            model.reshape(openvino.PartialShape([images, *image]))
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": self._cores,
            "NUM_STREAMS": streams,
            # The front-ends decode on the same cores; the kernel knows better which one is free.
            "ENABLE_CPU_PINNING": False,
        }
        return self._core.compile_model(model, "CPU", options)


class _Together:
    unit: int | None = None

    def __init__(self, compiled: openvino.CompiledModel) -> None:
        self._request = compiled.create_infer_request()
        self._has_head = len(compiled.outputs) > 1
        self._staging: Pixels = np.empty(0, np.uint8)

    def __call__(self, pixels: Pixels, slots: Sequence[int]) -> list[Answer]:
        if len(self._staging) < len(slots) or self._staging.shape[1:] != pixels.shape[1:]:
            self._staging = np.empty((len(slots), *pixels.shape[1:]), np.uint8)
        batch = gather(pixels, slots, self._staging)
        self._request.set_input_tensor(openvino.Tensor(batch, shared_memory=True))
        self._request.infer()
        return _answers(self._request, self._has_head)


class _Apart:
    """Each image is a request of its own; ``streams`` of them run at once. Compiled when it is first used."""

    def __init__(self, compile: Callable[[], openvino.CompiledModel], streams: int) -> None:
        self.unit: int | None = streams
        self._compile = compile
        self._compiled: openvino.CompiledModel | None = None
        self._singles: list[_Single] = []

    def __call__(self, pixels: Pixels, slots: Sequence[int]) -> list[Answer]:
        while len(self._singles) < len(slots):
            self._singles.append(self._single())
        if len(slots) == 1:
            return [self._singles[0](pixels, slots[0])]
        singles = self._singles[: len(slots)]
        try:
            for single, slot in zip(singles, slots, strict=True):
                single.start(pixels, slot)
        finally:
            # Even when one failed: the others read the arena until they are done.
            errors = [error for single in singles if (error := _finished(single.request))]
        if errors:
            raise errors[0]
        return [single.answer for single in singles]

    def lanes(self) -> list[Lane]:
        assert self.unit is not None
        return [self._single() for _ in range(self.unit)]

    def _single(self) -> _Single:
        self._compiled = self._compiled or self._compile()
        return _Single(self._compiled)


class _Single:
    """A request for one image, and a `Lane`. Its answer always lies in the same memory."""

    def __init__(self, compiled: openvino.CompiledModel) -> None:
        self.request = compiled.create_infer_request()
        outputs = [np.empty(list(port.shape), np.float32) for port in compiled.outputs]
        for number, output in enumerate(outputs):
            self.request.set_output_tensor(number, openvino.Tensor(output, shared_memory=True))
        features, logits = (*outputs, np.empty((1, 0), np.float32))[:2]
        self.answer = Answer(torch.from_numpy(features[0]), logits[0])

    def __call__(self, pixels: Pixels, slot: int) -> Answer:
        self._look_at(pixels, slot)
        self.request.infer()
        return self.answer

    def start(self, pixels: Pixels, slot: int) -> None:
        self._look_at(pixels, slot)
        self.request.start_async()

    def _look_at(self, pixels: Pixels, slot: int) -> None:
        self.request.set_input_tensor(openvino.Tensor(pixels[slot : slot + 1], shared_memory=True))


def _finished(request: openvino.InferRequest) -> RuntimeError | None:
    try:
        request.wait()
    except RuntimeError as error:
        return error
    return None


def _answers(request: openvino.InferRequest, has_head: bool) -> list[Answer]:
    """What a request has computed, without copying it."""
    features = torch.from_numpy(request.get_output_tensor(0).data)
    logits = request.get_output_tensor(1).data if has_head else np.empty((len(features), 0), np.float32)
    return [Answer(*row) for row in zip(features, logits, strict=True)]


def _weights(model: openvino.Model) -> int:
    """Bytes of all constants."""
    return sum(operation.get_byte_size() for operation in _constants(model))


def _constants(model: openvino.Model) -> Iterator[Any]:
    return (operation for operation in model.get_ops() if operation.get_type_name() == "Constant")


def load(
    model: Uint8Model,
    checkpoint: Checkpoint,
    precision: str,
    cores: int,
    report: Callable[[str], object],
) -> OpenVino:
    """The checkpoint's model, converted or from the cache. ``report`` hears what takes its time.

    Raises `ConversionError` when OpenVINO cannot run it.
    """
    directory = artifact.cached(checkpoint, precision)
    converted = _from_cache(directory)
    if converted is None:
        report("converting the model for OpenVINO; the next start finds it in the cache")
        log.info("converting the model for OpenVINO; the next start finds it in the cache")
        began = time.monotonic()
        has_head = checkpoint.classes is not None
        converted = convert(model, checkpoint.preprocessing.shape, precision, cores, has_head=has_head)
        log.info("converted in %.1f s", time.monotonic() - began)
        converted = _keep(directory, converted, checkpoint)
    return OpenVino(converted, precision, cores)


def _from_cache(directory: Path) -> openvino.Model | None:
    if not directory.is_dir():
        return None
    try:
        found = artifact.read(directory)
        directory.touch()  # for `artifact.prune`
    except (ConfigurationError, OSError) as error:
        log.warning("the cached conversion cannot be used and is made again: %s", error)
        return None
    log.info("converted model from the cache, %s", directory)
    return found.model


def convert(
    model: Uint8Model, image: tuple[int, int, int], precision: str, cores: int, *, has_head: bool = True
) -> openvino.Model:
    """The conversion of ``model`` that is the fastest on this processor. Raises `ConversionError`."""
    direct = conversion.convert(model, image, has_head=has_head)
    features = winograd.features(model, *image[:2]) if precision == "fp32" else None
    if features is None:
        return direct
    try:
        fewer = conversion.convert(model, image, has_head=has_head, features=features)
    except ConversionError as error:
        log.warning("Winograd's convolutions are not used: %s", error)
        return direct
    before, after = (_milliseconds(OpenVino(each, precision, cores), image) for each in (direct, fewer))
    log.info("one image: %.1f ms with direct convolutions, %.1f ms with Winograd's", before, after)
    return fewer if after < before else direct


def _milliseconds(runtime: OpenVino, image: tuple[int, int, int]) -> float:
    """The best of a few passes of one image, the first not among them."""
    way, pixels = runtime.ways()[0], np.zeros((1, *image), np.uint8)
    times = []
    for _ in range(_PASSES):
        began = time.monotonic()
        way(pixels, [0])
        times.append(1000 * (time.monotonic() - began))
    return min(times[1:])


def _keep(directory: Path, converted: openvino.Model, checkpoint: Checkpoint) -> openvino.Model:
    """The conversion as the cache has it now, which maps it from its file; or itself."""
    try:
        artifact.write(directory, converted, checkpoint, "fp32")
        artifact.prune()
        return artifact.read(directory).model
    except (OSError, ConfigurationError) as error:
        log.warning("the conversion is not cached, so that every start takes this long: %s", error)
        return converted


def open_artifact(path: Path, checkpoint: Checkpoint, cores: int) -> OpenVino:
    """The model of an artifact directory. Raises `ConfigurationError` unless it belongs to the checkpoint."""
    found = artifact.read(path)
    artifact.refuse_another(found, checkpoint, path.name)
    return OpenVino(found.model, found.precision, cores)


__all__ = ["ConversionError", "OpenVino", "convert", "load", "open_artifact"]
