"""Writes a converted model as ONNX, operation by operation, for other runtimes. OpenVINO cannot write ONNX.

It supports the operations of the plain networks; a model with any other operation runs on OpenVINO only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

#: An operation of OpenVINO, which has no types for a type checker.
Operation = Any
#: ONNX form of an operation: its name, the numbers of the inputs that stay, and its attributes.
Form = tuple[str, list[int], dict[str, Any]]

_OPSET, _IR = 17, 8


def translated(model: Any) -> bytes:
    """Returns the model as the bytes of an ONNX file: ``pixels`` → features and, with a head, logits.

    Raises TypeError for an unsupported operation.
    """
    nodes, constants, inputs = list[Any](), list[Any](), list[Any]()
    for operation in model.get_ordered_ops():
        kind, name = operation.get_type_name(), operation.get_friendly_name()
        if kind == "Parameter":
            inputs.append(helper.make_tensor_value_info(name, _TYPES["u8"], _shape(operation)))
        elif kind == "Constant":
            constants.append(numpy_helper.from_array(_array(operation), name))
        elif kind != "Result":
            nodes.append(_node(kind, operation, constants))
    results = [output.get_node().input_value(0).get_node() for output in model.outputs]
    outputs = [
        helper.make_tensor_value_info(each.get_friendly_name(), _TYPES["f32"], _shape(each))
        for each in results
    ]
    read = {name for node in nodes for name in node.input}
    used = [constant for constant in constants if constant.name in read]
    graph = helper.make_graph(nodes, "imagenet-serve", inputs, outputs, used)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    content: bytes = made.SerializeToString()
    return content


def _node(kind: str, operation: Operation, constants: list[Any]) -> Any:
    if kind not in _FORMS:
        raise TypeError(f"no ONNX for {kind}")
    name, kept, attributes = _FORMS[kind](operation)
    inputs = [operation.input_value(number).get_node().get_friendly_name() for number in kept]
    if kind == "MatMul" and operation.get_attributes()["transpose_b"]:
        # ONNX's MatMul has no such attribute.
        turned = np.ascontiguousarray(_constant(operation, 1).T)
        inputs[1] += ".transposed"
        constants.append(numpy_helper.from_array(turned, inputs[1]))
    output = operation.get_friendly_name()
    return helper.make_node(name, inputs, [output], name=output, **attributes)


def _same(name: str, inputs: int) -> Callable[[Operation], Form]:
    return lambda _: (name, [*range(inputs)], {})


def _convolution(operation: Operation) -> Form:
    return "Conv", [0, 1], {**_window(operation), "dilations": _numbers(operation, "dilations")}


def _max_pool(operation: Operation) -> Form:
    return "MaxPool", [0], {**_window(operation), "kernel_shape": _numbers(operation, "kernel")}


def _average_pool(operation: Operation) -> Form:
    attributes = {**_window(operation), "kernel_shape": _numbers(operation, "kernel")}
    return "AveragePool", [0], attributes


def _window(operation: Operation) -> dict[str, list[int]]:
    pads = [*_numbers(operation, "pads_begin"), *_numbers(operation, "pads_end")]
    return {"strides": _numbers(operation, "strides"), "pads": pads}


def _norm(operation: Operation) -> Form:
    return "BatchNormalization", [*range(5)], {"epsilon": float(operation.get_attributes()["epsilon"])}


def _convert(operation: Operation) -> Form:
    return "Cast", [0], {"to": _TYPES[str(operation.get_attributes()["destination_type"])]}


def _transpose(operation: Operation) -> Form:
    return "Transpose", [0], {"perm": _constant(operation, 1).tolist()}


def _concat(operation: Operation) -> Form:
    return "Concat", [*range(operation.get_input_size())], {"axis": int(operation.get_attributes()["axis"])}


def _reduce(name: str) -> Callable[[Operation], Form]:
    def form(operation: Operation) -> Form:
        keeps = int(operation.get_attributes()["keep_dims"])
        return name, [0], {"axes": _constant(operation, 1).tolist(), "keepdims": keeps}

    return form


_FORMS: Mapping[str, Callable[[Operation], Form]] = {
    "Add": _same("Add", 2),
    "Subtract": _same("Sub", 2),
    "Multiply": _same("Mul", 2),
    "Divide": _same("Div", 2),
    "Relu": _same("Relu", 1),
    "Sigmoid": _same("Sigmoid", 1),
    "Tanh": _same("Tanh", 1),
    "MatMul": _same("MatMul", 2),
    "Reshape": _same("Reshape", 2),  # 0 and -1 mean the same in both
    "Convert": _convert,
    "Transpose": _transpose,
    "Convolution": _convolution,
    "BatchNormInference": _norm,
    "MaxPool": _max_pool,
    "AvgPool": _average_pool,
    "Concat": _concat,
    "ReduceMean": _reduce("ReduceMean"),
    "ReduceMax": _reduce("ReduceMax"),
}

_TYPES: Mapping[str, int] = {
    "u8": onnx.TensorProto.UINT8,
    "f32": onnx.TensorProto.FLOAT,
    "i32": onnx.TensorProto.INT32,
}


def _array(operation: Operation) -> NDArray[Any]:
    return np.array(operation.data)


def _constant(operation: Operation, number: int) -> NDArray[Any]:
    """Returns a constant input. Raises TypeError if the input is computed."""
    node = operation.input_value(number).get_node()
    if node.get_type_name() != "Constant":
        raise TypeError(f"no ONNX for {operation.get_type_name()} with a computed input")
    return _array(node)


def _numbers(operation: Operation, attribute: str) -> list[int]:
    return [int(number) for number in operation.get_attributes()[attribute]]


def _shape(operation: Operation) -> list[int | str]:
    sides = operation.get_output_partial_shape(0)
    return ["N" if side.is_dynamic else side.get_length() for side in sides]
