"""`/v2`: the Open Inference Protocol of KServe's and Triton's clients.

The input is `image` (BYTES, encoded images) or `pixels` (UINT8, preprocessed). The outputs are `probabilities` and
`logits` (FP32), or with the classification extension `score:index:label`, whose index is a column of these tensors. One
unusable image fails the whole request. Errors have the protocol's form, `{"error": "..."}`, and the statuses of the
other routes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from starlette.responses import Response

from service import __version__
from service.api import body, tensors
from service.api.admission import Admission
from service.api.context import ENVELOPE, Context, context_of
from service.api.inference import in_a_thread
from service.api.served import Served
from service.api.tensors import InferOutput, InferRequest, OutputParameters, OutputTensor, Tensor
from service.errors import EmptyBody, InvalidParameter, MissingFile, NotFound
from service.observability.card import ModelCard
from service.shared.ranking import activate, top
from service.shared.writing import Work

#: The error responses for the schema; each is the protocol's ``{"error": "…"}``.
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": "an object with the key `error`"}
    for status in (400, 404, 413, 415, 422, 429, 500, 503, 504)
}

router = APIRouter(prefix="/v2", tags=["open inference protocol"], responses=_PROBLEMS)

#: The only version of every model; clients may omit it.
VERSION = "1"
_OUTPUTS = ("probabilities", "logits")
_JSON_LENGTH = "inference-header-content-length"

_INFER_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": tensors.request_schema()},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


@router.get("/health/live")
async def live(request: Request) -> dict[str, bool]:
    """Returns 200 unless a restart would help, as `/livez` does."""
    context_of(request).check_alive()
    return {"live": True}


@router.get("/health/ready")
async def ready(request: Request) -> dict[str, bool]:
    """Returns 200 while new traffic should come here, as `/readyz` does."""
    context_of(request).check_ready()
    return {"ready": True}


@router.get("")
async def server() -> dict[str, Any]:
    """Returns the server's name and version, and the protocol's extensions that it supports."""
    extensions = ["classification", "binary_tensor_data"]
    return {"name": "imagenet-serve", "version": __version__, "extensions": extensions}


@router.get("/models/{model_name}")
@router.get("/models/{model_name}/versions/{model_version}", include_in_schema=False)
async def model_metadata(request: Request, model_name: str, model_version: str = VERSION) -> dict[str, Any]:
    """Returns the model's inputs and outputs. Its name is that in `/model`."""
    card = named(context_of(request), model_name, model_version)
    return described(card)


@router.get("/models/{model_name}/ready")
@router.get("/models/{model_name}/versions/{model_version}/ready", include_in_schema=False)
async def model_ready(request: Request, model_name: str, model_version: str = VERSION) -> dict[str, Any]:
    """Returns 200 while this model is ready."""
    context = context_of(request)
    context.check_ready()
    return {"name": named(context, model_name, model_version).name, "ready": True}


@router.post("/models/{model_name}/infer", openapi_extra=_INFER_BODY)
@router.post("/models/{model_name}/versions/{model_version}/infer", include_in_schema=False)
async def infer(request: Request, model_name: str, model_version: str = VERSION) -> Response:
    """Classifies encoded images or preprocessed pixels, to probabilities, logits or classes."""
    admission = Admission.of(request, model_name)
    context, model = admission.context, check_asked(admission.served, model_version)
    async with admission:
        asked, works = await admission.receive(_read(request, admission))
        admission.deadline = deadline_of(asked, admission)
        logits = await admission.logits(works)
        head = {"model_name": model.name, "model_version": VERSION}
        if asked.id is not None:
            head["id"] = asked.id
        content, json_length = await in_a_thread(
            context, lambda: tensors.encode(head, outputs_of(asked, logits, model)), admission.deadline
        )
    admission.state.timings()
    if json_length is None:
        return Response(content, media_type="application/json")
    return Response(content, media_type="application/octet-stream", headers={_JSON_LENGTH: str(json_length)})


def described(card: ModelCard) -> dict[str, Any]:
    """The model's inputs and outputs in the protocol's form."""
    return {
        "name": card.name,
        "versions": [VERSION],
        "platform": card.runtime,
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
            {"name": "pixels", "datatype": "UINT8", "shape": [-1, *card.image]},
        ],
        "outputs": [
            {"name": name, "datatype": "FP32", "shape": [-1, len(card.classes)]} for name in _OUTPUTS
        ],
    }


def named(context: Context, name: str, version: str) -> ModelCard:
    """The card of the model of that name and version. Raises `NotReady`, `NotFound`."""
    return _versioned(context.model(name), version)


def check_asked(served: Served, version: str) -> ModelCard:
    """The card of an inference's model. Raises `NotFound` for another version, or for a model without classes."""
    _versioned(served.card, version)
    return served.classifier()


def deadline_of(asked: InferRequest, admission: Admission) -> float:
    """The deadline: that of the admission, or an earlier one by the request's parameter ``timeout``."""
    if asked.parameters and asked.parameters.timeout:
        return min(admission.deadline, admission.state.started + asked.parameters.timeout / 1e6)
    return admission.deadline


def _versioned(card: ModelCard, version: str) -> ModelCard:
    if version != VERSION:
        raise NotFound(f"there is no such model version, {version[:50]!r}; {card.name} has {VERSION}")
    return card


async def _read(request: Request, admission: Admission) -> tuple[InferRequest, list[Work]]:
    context, served = admission.context, admission.served
    raw = await body.read(request, context.settings.max_upload_bytes + ENVELOPE)

    def parse() -> tuple[InferRequest, list[Work]]:
        asked, given = tensors.parse(raw, request.headers.get(_JSON_LENGTH))
        check_outputs(asked, len(served.card.classes))
        return asked, works_of(context, served, given)

    # In a thread, since JSON may hold a million numbers.
    return await in_a_thread(context, parse, admission.deadline)


def works_of(context: Context, served: Served, given: dict[str, Tensor]) -> list[Work]:
    """The work that fills a slot for each image of the input. Raises `RequestError` for an unusable input."""
    if len(given) != 1 or not given.keys() <= {"image", "pixels"}:
        raise MissingFile("give one input: 'image' (BYTES, encoded images) or 'pixels' (UINT8, preprocessed)")
    (tensor,) = given.values()
    count, most = next(iter(tensor.shape), 0), context.settings.max_images_per_request
    if count > most:
        raise body.too_many(count, most)
    if count == 0:
        raise EmptyBody(f"{tensor.name}: there is no image in it")
    if tensor.name == "image":
        return [served.picture(picture) for picture in tensors.pictures(tensor)]
    images = tensors.pixels(tensor, served.card.image)
    return [partial(np.copyto, src=image) for image in images]


def check_outputs(asked: InferRequest, classes: int) -> None:
    """Raises `InvalidParameter` for an unknown output or an unsupported parameter of one."""
    for output in asked.outputs or ():
        parameters = output.parameters or OutputParameters()
        if output.name not in _OUTPUTS:
            raise InvalidParameter(
                f"there is no output {output.name[:50]!r}; there are {' and '.join(_OUTPUTS)}"
            )
        if parameters.shared_memory_region is not None:
            raise InvalidParameter(f"{output.name}: shared memory is not offered")
        if parameters.classification > classes:
            raise InvalidParameter(
                f"{output.name}: classification {parameters.classification} is more than the model's {classes} classes"
            )


def _set(outputs: Sequence[InferOutput]) -> list[InferOutput]:
    """The outputs without exact repetitions."""
    return [output for place, output in enumerate(outputs) if output not in outputs[:place]]


def outputs_of(asked: InferRequest, logits: NDArray[np.float32], model: ModelCard) -> list[OutputTensor]:
    """The outputs that the request asks for (none named: all), from logits float32 ``[N, classes]``."""
    everything_binary = bool(asked.parameters and asked.parameters.binary_data_output)
    outputs = []
    for wanted in _set(asked.outputs or ()) or [InferOutput(name=name) for name in _OUTPUTS]:
        parameters = wanted.parameters or OutputParameters()
        scores = logits
        if wanted.name == "probabilities":
            scores = np.stack([activate(row, model.activation) for row in logits]).astype(np.float32)
        binary = everything_binary if parameters.binary_data is None else parameters.binary_data
        values: NDArray[np.float32] | Sequence[Sequence[bytes]] = scores
        if parameters.classification:
            values = [
                [
                    f"{row[index]:.6f}:{index}:{model.classes[index].label}".encode()
                    for index in top(logit, parameters.classification)
                ]
                for row, logit in zip(scores, logits, strict=True)
            ]
        outputs.append(OutputTensor(wanted.name, values, binary))
    return outputs
