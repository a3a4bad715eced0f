"""The protocol's messages as data: `GRPCInferenceService` of package ``inference``.

Names and numbers are those of the Open Inference Protocol, https://github.com/kserve/open-inference-protocol, which
KServe's and Triton's clients share. The classes are made at run time in a pool of their own. So there is no generated
code that fits only one version of protobuf, and no conflict with a client's copy of the package in the same process.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_Field = descriptor_pb2.FieldDescriptorProto

PACKAGE: Final = "inference"
SERVICE: Final = f"{PACKAGE}.GRPCInferenceService"
_FILE = "imagenet_serve/open_inference.proto"

_SCALARS = {
    "bool": _Field.TYPE_BOOL,
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64,
    "float": _Field.TYPE_FLOAT,
    "double": _Field.TYPE_DOUBLE,
}
#: The fields of each message as ``name: type``, numbered from 1 in their order. ``*`` means repeated, ``{}`` a map from
#: string, ``|`` a member of the message's oneof. A dot in a message's name means that it is nested.
_MESSAGES: Final[dict[str, str]] = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live: bool",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready: bool",
    "ModelReadyRequest": "name: string, version: string",
    "ModelReadyResponse": "ready: bool",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name: string, version: string, extensions: *string",
    "ModelMetadataRequest": "name: string, version: string",
    "ModelMetadataResponse": "name: string, versions: *string, platform: string, "
    "inputs: *ModelMetadataResponse.TensorMetadata, outputs: *ModelMetadataResponse.TensorMetadata",
    "ModelMetadataResponse.TensorMetadata": "name: string, datatype: string, shape: *int64",
    "InferParameter": "bool_param: |bool, int64_param: |int64, string_param: |string, double_param: |double, "
    "uint64_param: |uint64",
    "InferTensorContents": "bool_contents: *bool, int_contents: *int32, int64_contents: *int64, "
    "uint_contents: *uint32, uint64_contents: *uint64, fp32_contents: *float, fp64_contents: *double, "
    "bytes_contents: *bytes",
    "ModelInferRequest": "model_name: string, model_version: string, id: string, parameters: {}InferParameter, "
    "inputs: *ModelInferRequest.InferInputTensor, outputs: *ModelInferRequest.InferRequestedOutputTensor, "
    "raw_input_contents: *bytes",
    "ModelInferRequest.InferInputTensor": "name: string, datatype: string, shape: *int64, "
    "parameters: {}InferParameter, contents: InferTensorContents",
    "ModelInferRequest.InferRequestedOutputTensor": "name: string, parameters: {}InferParameter",
    "ModelInferResponse": "model_name: string, model_version: string, id: string, parameters: {}InferParameter, "
    "outputs: *ModelInferResponse.InferOutputTensor, raw_output_contents: *bytes",
    "ModelInferResponse.InferOutputTensor": "name: string, datatype: string, shape: *int64, "
    "parameters: {}InferParameter, contents: InferTensorContents",
}
METHODS: Final = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name=_FILE, package=PACKAGE, syntax="proto3")
    made: dict[str, descriptor_pb2.DescriptorProto] = {}
    for path, fields in _MESSAGES.items():
        parent, _, name = path.rpartition(".")
        message = made[path] = (made[parent].nested_type if parent else file.message_type).add(name=name)
        for number, declared in enumerate(filter(None, fields.split(", ")), start=1):
            _add_field(message, path, number, *declared.split(": "))
    service = file.service.add(name=SERVICE.rpartition(".")[2])
    for method in METHODS:
        service.method.add(
            name=method, input_type=f".{PACKAGE}.{method}Request", output_type=f".{PACKAGE}.{method}Response"
        )
    return file


def _add_field(message: descriptor_pb2.DescriptorProto, path: str, number: int, name: str, kind: str) -> None:
    label = _Field.LABEL_REPEATED if kind[0] in "*{" else _Field.LABEL_OPTIONAL
    field = message.field.add(name=name, number=number, label=label)
    if kind.startswith("|"):
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    if kind.startswith("{}"):
        entry = message.nested_type.add(name=f"{name.title()}Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_STRING)
        _set_type(entry.field.add(name="value", number=2, label=_Field.LABEL_OPTIONAL), kind[2:])
        _set_type(field, f"{path}.{entry.name}")
    else:
        _set_type(field, kind.lstrip("*|"))


def _set_type(field: descriptor_pb2.FieldDescriptorProto, kind: str) -> None:
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}.{kind}"


POOL: Final = descriptor_pool.DescriptorPool()
POOL.AddSerializedFile(_file().SerializeToString())


def message(name: str) -> Any:
    """The class of a message, by its name in the package."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))
