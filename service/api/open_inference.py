"""`/v2`: the Open Inference Protocol, as KServe and Triton's clients speak it.

Inputs are `image` (BYTES, encoded pictures) or `pixels` (UINT8, prepared as the model wants them); outputs
`probabilities` and `logits` (FP32), or with the classification extension `score:index:label`, the index being a
place in those tensors. A request is served whole or not at all: one bad picture is the request's error. Errors have
the protocol's own shape, `{"error": "..."}`, and the statuses of every other route.
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
from service.api.tensors import InferOutput, InferRequest, Output, OutputParameters, Tensor
from service.errors import EmptyBody, InvalidParameter, MissingFile, NotFound
from service.observability.card import ModelCard
from service.shared.ranking import activate, top
from service.shared.writing import Work

#: For the schema: every error here is the protocol's ``{"error": "…"}``.
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": "an object with the key `error`"}
    for status in (400, 404, 413, 415, 422, 429, 500, 503, 504)
}

router = APIRouter(prefix="/v2", tags=["open inference protocol"], responses=_PROBLEMS)

#: There is one, and clients may leave it out.
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
    """200 unless a restart would help, as `/livez`."""
    context_of(request).check_alive()
    return {"live": True}


@router.get("/health/ready")
async def ready(request: Request) -> dict[str, bool]:
    """200 while new traffic should come here, as `/readyz`."""
    context_of(request).check_ready()
    return {"ready": True}


@router.get("")
async def server() -> dict[str, Any]:
    """Who answers, and which of the protocol's extensions it knows."""
    extensions = ["classification", "binary_tensor_data"]
    return {"name": "imagenet-serve", "version": __version__, "extensions": extensions}


@router.get("/models/{model_name}")
@router.get("/models/{model_name}/versions/{model_version}", include_in_schema=False)
async def model_metadata(request: Request, model_name: str, model_version: str = VERSION) -> dict[str, Any]:
    """The model's inputs and outputs. Its name is the one that `/model` has."""
    card = named(context_of(request), model_name, model_version)
    return described(card)


@router.get("/models/{model_name}/ready")
@router.get("/models/{model_name}/versions/{model_version}/ready", include_in_schema=False)
async def model_ready(request: Request, model_name: str, model_version: str = VERSION) -> dict[str, Any]:
    """200 while this model should be asked."""
    context = context_of(request)
    context.check_ready()
    return {"name": named(context, model_name, model_version).name, "ready": True}


@router.post("/models/{model_name}/infer", openapi_extra=_INFER_BODY)
@router.post("/models/{model_name}/versions/{model_version}/infer", include_in_schema=False)
async def infer(request: Request, model_name: str, model_version: str = VERSION) -> Response:
    """Pictures, or pixels that are prepared already, to probabilities, logits or classes."""
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
    admission.exchange.timings()
    if json_length is None:
        return Response(content, media_type="application/json")
    return Response(content, media_type="application/octet-stream", headers={_JSON_LENGTH: str(json_length)})


def described(card: ModelCard) -> dict[str, Any]:
    """The model's inputs and outputs, as the protocol describes them."""
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
    """The model, if that is its name. Raises `NotReady`, `NotFound`."""
    return _versioned(context.model(name), version)


def check_asked(served: Served, version: str) -> ModelCard:
    """The model of an inference. Raises `NotFound` for another version, or for a model without classes."""
    _versioned(served.card, version)
    return served.classifier()


def deadline_of(asked: InferRequest, admission: Admission) -> float:
    """When the answer has to be there: the request's own parameter may be earlier than what admitted it."""
    if asked.parameters and asked.parameters.timeout:
        return min(admission.deadline, admission.exchange.started + asked.parameters.timeout / 1e6)
    return admission.deadline


def _versioned(card: ModelCard, version: str) -> ModelCard:
    if version != VERSION:
        raise NotFound(f"there is no such model version, {version[:50]!r}; {card.name} has {VERSION}")
    return card


async def _read(request: Request, admission: Admission) -> tuple[InferRequest, list[Work]]:
    """What is asked, and what fills a slot with each image."""
    context, served = admission.context, admission.served
    raw = await body.read(request, context.settings.max_upload_bytes + ENVELOPE)

    def parse() -> tuple[InferRequest, list[Work]]:
        asked, given = tensors.parse(raw, request.headers.get(_JSON_LENGTH))
        check_outputs(asked, len(served.card.classes))
        return asked, works_of(context, served, given)

    # In a thread: JSON may hold a million numbers.
    return await in_a_thread(context, parse, admission.deadline)


def works_of(context: Context, served: Served, given: dict[str, Tensor]) -> list[Work]:
    """What fills a slot with each image of the one input. Raises `RequestError` for an input that cannot be."""
    if len(given) != 1 or not given.keys() <= {"image", "pixels"}:
        raise MissingFile(
            "give one input: 'image' (BYTES, pictures) or 'pixels' (UINT8, as the model sees them)"
        )
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
    """Raises `InvalidParameter` for an output that there is not."""
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
    """What is asked for twice in the same way is answered once."""
    return [output for place, output in enumerate(outputs) if output not in outputs[:place]]


def outputs_of(asked: InferRequest, logits: NDArray[np.float32], model: ModelCard) -> list[Output]:
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
        outputs.append(Output(wanted.name, values, binary))
    return outputs
