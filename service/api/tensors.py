"""The Open Inference Protocol's tensors on the wire: JSON, and the binary tensor data extension.

    body = JSON, then each binary input's bytes in the order of the inputs
    a BYTES element = uint32 length (little-endian), then so many bytes

Sources: https://github.com/kserve/open-inference-protocol, and Triton's protocol folder for the extensions. The module
converts between bytes and arrays, independently of HTTP and of the model.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import to_json

from service.api import documents
from service.api.numbers import whole
from service.errors import InvalidParameter

_LENGTH = struct.Struct("<I")

Bytes = bytes | memoryview

_JSON_LENGTH = "Inference-Header-Content-Length"
#: The limits on characters of a name, dimensions of a shape, and inputs or outputs of a request.
_NAME, _DIMENSIONS, _TENSORS = 128, 8, 16
#: The largest timeout in microseconds: eleven days, more than `request_timeout_ms` allows.
_EVER = 10**12
#: A number of elements, bytes or classes.
Size = Annotated[int, Field(ge=0, le=2**31 - 1)]
Name = Annotated[str, Field(max_length=_NAME)]


class InputParameters(BaseModel):
    """An input's parameters. With ``binary_data_size`` the tensor's bytes, as many, follow the JSON."""

    binary_data_size: Size | None = None
    shared_memory_region: Name | None = None


class InferInput(BaseModel):
    """One input. ``data`` is flat or nested; encoded images are base64."""

    name: Name
    datatype: Name = Field(examples=["BYTES"])
    shape: list[Size] = Field(examples=[[1]], max_length=_DIMENSIONS)
    parameters: InputParameters | None = None
    data: list[Any] | None = None


class OutputParameters(BaseModel):
    """An output's parameters. ``classification`` k asks for the k best classes in place of the tensor."""

    binary_data: bool | None = None
    classification: Size = 0
    shared_memory_region: Name | None = None


class InferOutput(BaseModel):
    """One wanted output."""

    name: Name
    parameters: OutputParameters | None = None


class InferParameters(BaseModel):
    """A request's parameters. ``timeout`` is in microseconds, as in Triton."""

    binary_data_output: bool = False
    timeout: Annotated[int, Field(ge=0, le=_EVER)] | None = None


class InferRequest(BaseModel):
    """An inference request; no ``outputs`` means all. Unknown fields are ignored, as the protocol requires."""

    id: Name | None = None
    parameters: InferParameters | None = None
    inputs: list[InferInput] = Field(max_length=_TENSORS)
    outputs: list[InferOutput] | None = Field(None, max_length=_TENSORS)


def request_schema() -> dict[str, Any]:
    """The JSON schema of `InferRequest` without references, since FastAPI does not know its parts."""
    schema = InferRequest.model_json_schema()
    parts = schema.pop("$defs")

    def whole(node: Any) -> Any:
        if isinstance(node, dict):
            name = node.get("$ref", "").rpartition("/")[2]
            return whole(parts[name]) if name else {key: whole(value) for key, value in node.items()}
        return [whole(item) for item in node] if isinstance(node, list) else node

    inlined: dict[str, Any] = whole(schema)
    return inlined


@dataclass(frozen=True)
class Tensor:
    """An input with its bytes, or with its values in JSON."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: memoryview | list[Any]


def parse(body: bytes, json_length: str | None) -> tuple[InferRequest, dict[str, Tensor]]:
    """Parses a request and its inputs, by name. ``json_length`` is the header Inference-Header-Content-Length.

    Raises `InvalidParameter` with the first fault.
    """
    length = len(body) if json_length is None else whole(json_length, _JSON_LENGTH, len(body))
    documents.check(memoryview(body)[:length])
    try:
        request = InferRequest.model_validate_json(body[:length])
    except ValidationError as errors:
        raise InvalidParameter(documents.first_complaint(errors)) from None
    tensors: dict[str, Tensor] = {}
    rest = memoryview(body)[length:]
    for given in request.inputs:
        if given.name in tensors:
            raise InvalidParameter(f"the input {given.name!r} is there twice")
        data, rest = _data(given, rest)
        tensors[given.name] = Tensor(given.name, given.datatype, tuple(given.shape), data)
    if rest:
        raise InvalidParameter(f"the body has {len(rest)} bytes more than the inputs' binary_data_size")
    return request, tensors


def _data(given: InferInput, rest: memoryview) -> tuple[memoryview | list[Any], memoryview]:
    """An input's data, and the rest of the binary part."""
    parameters = given.parameters or InputParameters()
    if parameters.shared_memory_region is not None:
        raise InvalidParameter(f"{given.name}: shared memory is not offered; send the tensor")
    size = parameters.binary_data_size
    if (size is None) == (given.data is None):
        raise InvalidParameter(f"{given.name}: give either data or the parameter binary_data_size")
    if size is None:
        return given.data or [], rest
    if size > len(rest):
        raise InvalidParameter(f"{given.name}: binary_data_size is {size} and {len(rest)} bytes are there")
    return rest[:size], rest[size:]


def pictures(tensor: Tensor) -> list[Bytes]:
    """The N elements of a BYTES tensor ``[N]`` or ``[N, 1]``; in JSON each is base64. Raises `InvalidParameter`."""
    _expect(tensor, "BYTES", (-1,) if len(tensor.shape) == 1 else (-1, 1))
    elements = _flat(tensor.data) if isinstance(tensor.data, list) else _split(tensor.name, tensor.data)
    if len(elements) != tensor.shape[0]:
        raise InvalidParameter(
            f"{tensor.name}: the shape says {tensor.shape[0]} elements and there are {len(elements)}"
        )
    return [_decoded(tensor.name, element) for element in elements]


def _flat(data: list[Any]) -> list[Any]:
    return [inner for outer in data for inner in (outer if isinstance(outer, list) else [outer])]


def _split(name: str, data: memoryview) -> list[Any]:
    elements = []
    while data:
        if len(data) < _LENGTH.size or len(data) - _LENGTH.size < _LENGTH.unpack_from(data)[0]:
            raise InvalidParameter(f"{name}: the last element ends early")
        (length,) = _LENGTH.unpack_from(data)
        elements.append(data[_LENGTH.size : _LENGTH.size + length])
        data = data[_LENGTH.size + length :]
    return elements


def _decoded(name: str, element: Any) -> Bytes:
    if isinstance(element, memoryview):
        return element
    try:
        return base64.b64decode(element, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise InvalidParameter(
            f"{name}: in JSON an image is a string of base64; the binary tensor extension takes its bytes as they are"
        ) from None


def pixels(tensor: Tensor, image: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The images of a UINT8 tensor, uint8 ``[N, *image]``. Raises `InvalidParameter`."""
    _expect(tensor, "UINT8", (-1, *image))
    if isinstance(tensor.data, memoryview):
        if len(tensor.data) != math.prod(tensor.shape):
            raise InvalidParameter(
                f"{tensor.name}: the shape says {math.prod(tensor.shape)} bytes, not {len(tensor.data)}"
            )
        return np.frombuffer(tensor.data, np.uint8).reshape(tensor.shape)
    values = tensor.data
    for _ in tensor.shape[1:]:
        values = _flat(values)
    # Only numbers reach NumPy: of strings it would allocate the longest one's length for every element.
    numbers = len(values) == math.prod(tensor.shape) and all(type(value) is int for value in values)
    if not numbers or not all(0 <= value <= 255 for value in values):
        raise InvalidParameter(
            f"{tensor.name}: data must be {list(tensor.shape)} whole numbers from 0 to 255"
        )
    return np.array(values, np.uint8).reshape(tensor.shape)


def _expect(tensor: Tensor, datatype: str, shape: tuple[int, ...]) -> None:
    """Raises `InvalidParameter` for another datatype or shape; -1 in ``shape`` means any length."""
    fits = len(tensor.shape) == len(shape) and all(
        wanted in (-1, given) for wanted, given in zip(shape, tensor.shape, strict=False)
    )
    if tensor.datatype != datatype or not fits:
        raise InvalidParameter(
            f"{tensor.name}: {datatype} {list(shape)} is wanted, not {tensor.datatype[:20]} {list(tensor.shape)}"
        )


@dataclass(frozen=True)
class OutputTensor:
    """One output: float32 of any shape, or rows of BYTES elements."""

    name: str
    values: NDArray[np.float32] | Sequence[Sequence[bytes]]
    binary: bool


def encode(head: Mapping[str, Any], outputs: Sequence[OutputTensor]) -> tuple[bytes, int | None]:
    """The response's body, and the length of its JSON if binary tensors follow it. The JSON begins with ``head``."""
    entries, binary = [], []
    for output in outputs:
        datatype, shape, flat = described(output)
        entry: dict[str, Any] = {"name": output.name, "datatype": datatype, "shape": shape}
        if output.binary:
            data = packed(flat)
            entry["parameters"] = {"binary_data_size": len(data)}
            binary.append(data)
        else:
            entry["data"] = (
                flat.tolist() if isinstance(flat, np.ndarray) else [element.decode() for element in flat]
            )
        entries.append(entry)
    document = to_json({**head, "outputs": entries})
    return b"".join([document, *binary]), len(document) if binary else None


def described(output: OutputTensor) -> tuple[str, list[int], NDArray[np.float32] | list[bytes]]:
    """An output's datatype, shape and elements in C order."""
    values = output.values
    if isinstance(values, np.ndarray):
        return "FP32", list(values.shape), values.ravel()
    return "BYTES", [len(values), len(values[0])], [element for row in values for element in row]


def joined(elements: Sequence[bytes]) -> bytes:
    """The bytes of BYTES elements in the binary extension, each after its length."""
    return b"".join(_LENGTH.pack(len(element)) + element for element in elements)


def packed(flat: NDArray[np.float32] | Sequence[bytes]) -> bytes:
    """The bytes of an output's elements in the binary extension."""
    return flat.astype("<f4").tobytes() if isinstance(flat, np.ndarray) else joined(flat)
