"""`POST /explain`: the contribution of each part of a photo to one class."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from numpy.typing import NDArray
from starlette.responses import Response

from service.api import body
from service.api.admission import Admission
from service.api.inference import PROBLEMS, ModelName, head, in_a_thread, reply, upload
from service.api.schemas import ExplainResponse
from service.errors import InvalidParameter
from service.images.overlay import overlay
from service.labels import ClassLabel
from service.preprocess import seen_box
from service.shared.outputs import Explain
from service.shared.ranking import activate

router = APIRouter(tags=["explain"])

_PNG = "image/png"
#: The method of each family. A DenseNet's head is pooling and one dense layer, so its map is exact; see
#: `service.models.explain`.
_METHODS = {"densenet": "cam", "vgg": "grad-cam"}

ClassId = Annotated[
    int | None,
    Query(ge=0, description="The class_id of the class, as in /labels; the top class unless given."),
]


@router.post(
    "/explain",
    response_model=ExplainResponse,
    responses={**PROBLEMS, 200: {"content": {_PNG: {}}}},
    openapi_extra=upload("file"),
)
async def explain(request: Request, class_id: ClassId = None, model: ModelName = None) -> Response:
    """Explains one class by a class activation map (DenseNet) or Grad-CAM (VGG).

    The answer holds the map's cells in units of the class's logit, negative for parts that speak against it, and the
    part of the photo that they cover. With `Accept: image/png` it is the upright photo with the map drawn over it,
    1,024 pixels at most. The image is batched with those of other requests.
    """
    admission = Admission.of(request, model)
    limit = admission.context.settings.max_upload_bytes
    drawn = _PNG in request.headers.get("accept", "")
    explained = await explain_image(admission, class_id, lambda: body.one_image(request, limit), drawn=drawn)
    label = explained.label
    if explained.picture is not None:
        headers = {"X-Class-Id": str(label.class_id)}
        return Response(explained.picture, media_type=_PNG, headers=headers)
    document: dict[str, Any] = {
        "class_id": label.class_id,
        "wnid": label.wnid,
        "label": label.label,
        "probability": explained.probability,
        "method": _METHODS[admission.served.card.family],
        "grid": explained.grid.tolist(),
        "box": explained.box,
        "timings_ms": explained.timings,
    }
    return reply({**head(admission.state, admission.served.card), **document})


@dataclass(frozen=True)
class ExplainedImage:
    """The contributions of a photo's parts to one class: ``grid``, float32 ``[h, w]``, in units of the logit."""

    label: ClassLabel
    probability: float
    grid: NDArray[np.float32]
    box: tuple[float, float, float, float]
    timings: dict[str, float]
    picture: bytes | None
    """The PNG; None unless it was asked for."""


async def explain_image(
    admission: Admission,
    class_id: int | None,
    receive: Callable[[], Awaitable[bytes | memoryview]],
    *,
    drawn: bool = False,
) -> ExplainedImage:
    """Admits the request, reads its image with ``receive`` and explains a class (None: the top one).

    With ``drawn`` the result has a PNG. Raises `NotFound` for a model without classes, `InvalidParameter` for an
    unknown ``class_id``, and what `Admission` raises.
    """
    context, served = admission.context, admission.served
    model = served.classifier()
    wanted = Explain(None if class_id is None else _index(model.classes, class_id))
    classes, (_, height, width) = len(model.classes), model.feature_shape
    async with admission:
        photo = served.picture(await admission.receive(receive()), drawn)
        result = (await admission.infer(photo, classes + height * width, wanted)).result
        logits, grid = result[:classes], result[classes:].reshape(height, width)
        index = int(logits.argmax()) if wanted.class_index is None else wanted.class_index
        box = seen_box(photo.size, model.preprocessing)
        picture = None
        if drawn:
            assert photo.photo is not None
            picture = await in_a_thread(context, partial(overlay, photo.photo, grid, box), admission.deadline)
    probability = float(activate(logits, model.activation)[index])
    return ExplainedImage(model.classes[index], probability, grid, box, admission.state.timings(), picture)


def _index(classes: Sequence[ClassLabel], class_id: int) -> int:
    for index, entry in enumerate(classes):
        if entry.class_id == class_id:
            return index
    raise InvalidParameter(f"class_id: {class_id} is none of the model's {len(classes)} classes; see /labels")
