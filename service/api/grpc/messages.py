"""Converts between the protocol's messages and the requests, tensors and outputs of `/v2`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from service.api import tensors
from service.api.grpc import schema
from service.api.tensors import (
    InferInput,
    InferOutput,
    InferParameters,
    InferRequest,
    OutputParameters,
    OutputTensor,
    Tensor,
)
from service.errors import InvalidParameter

_Response = schema.message("ModelInferResponse")
_INT64_MAX = 2**63 - 1


def parse(message: Any) -> tuple[InferRequest, dict[str, Tensor]]:
    """The request and its inputs by name. Raises `InvalidParameter` with the first fault."""
    raw = list(message.raw_input_contents)
    if raw and len(raw) != len(message.inputs):
        raise InvalidParameter(
            f"raw_input_contents has {len(raw)} tensors for {len(message.inputs)} inputs; give one for each, or none"
        )
    given: dict[str, Tensor] = {}
    for place, tensor in enumerate(message.inputs):
        if tensor.name in given:
            raise InvalidParameter(f"the input {tensor.name[:50]!r} is there twice")
        _refuse_shared_memory(tensor)
        if min(tensor.shape, default=0) < 0:
            raise InvalidParameter(f"{tensor.name[:50]}: a shape has no negative sizes")
        data = memoryview(raw[place]) if raw else _typed(tensor)
        given[tensor.name] = Tensor(tensor.name, tensor.datatype, tuple(tensor.shape), data)
    outputs = [InferOutput(name=output.name, parameters=_output(output)) for output in message.outputs]
    inputs = [
        InferInput(name=name, datatype=one.datatype, shape=list(one.shape)) for name, one in given.items()
    ]
    request = InferRequest(
        id=message.id or None, parameters=_parameters(message), inputs=inputs, outputs=outputs or None
    )
    return request, given


def response(head: dict[str, str], outputs: Sequence[OutputTensor], raw: bool) -> Any:
    """The answer's message, with tensors in ``raw_output_contents`` if ``raw``, else typed."""
    answer = _Response(**head)
    for output in outputs:
        datatype, shape, flat = tensors.described(output)
        tensor = answer.outputs.add(name=output.name, datatype=datatype, shape=shape)
        if raw:
            answer.raw_output_contents.append(tensors.packed(flat))
        elif isinstance(flat, np.ndarray):
            tensor.contents.fp32_contents.extend(flat.tolist())
        else:
            tensor.contents.bytes_contents.extend(flat)
    return answer


def _typed(tensor: Any) -> memoryview | list[Any]:
    """A tensor's typed contents: encoded images in the form of the binary extension, pixels as numbers."""
    if tensor.datatype == "BYTES":
        return memoryview(tensors.joined(list(tensor.contents.bytes_contents)))
    return list(tensor.contents.uint_contents)


def _parameters(message: Any) -> InferParameters:
    timeout = _number(message.parameters, "timeout")
    return InferParameters(timeout=timeout or None)


def _output(output: Any) -> OutputParameters:
    _refuse_shared_memory(output)
    return OutputParameters(classification=_number(output.parameters, "classification"))


def _number(parameters: Any, name: str) -> int:
    """A whole number among ``parameters``, 0 if it is absent. Raises `InvalidParameter`."""
    if name not in parameters:
        return 0
    choice = parameters[name].WhichOneof("parameter_choice")
    value: Any = getattr(parameters[name], choice) if choice else None
    if choice == "string_param" and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _INT64_MAX:
        raise InvalidParameter(f"{name} must be a whole number, 0 or more")
    return value


def _refuse_shared_memory(holder: Any) -> None:
    if "shared_memory_region" in holder.parameters:
        raise InvalidParameter(f"{holder.name[:50]}: shared memory is not offered")
