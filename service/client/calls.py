"""Every request of the client as data, and the function that reads its answer."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import httpx
import numpy as np

from service.client.answers import (
    BatchItem,
    BatchPredictions,
    Explanation,
    Features,
    Prediction,
    Predictions,
    Timings,
)
from service.client.errors import ApiError, Refused, Unavailable, Unexpected
from service.client.photos import File
from service.client.retry import AGAIN_LATER

R = TypeVar("R")


@dataclass(frozen=True)
class Call(Generic[R]):
    """A request, and the function that reads its answer. It is sent again after a refusal only if ``patient``."""

    method: str
    path: str
    read: Callable[[httpx.Response], R]
    options: Mapping[str, Any] = field(default_factory=dict)
    patient: bool = True


def _one(path: str, file: File, read: Callable[[httpx.Response], R], accept: str, **query: Any) -> Call[R]:
    """A call with one photo as the raw body, and those query parameters that are not None."""
    params = {name: value for name, value in query.items() if value is not None}
    headers = {"content-type": file.media_type, "accept": accept}
    return Call("POST", path, read, {"params": params, "content": file.data, "headers": headers})


def predict(file: File, top_k: int | None, activation: str) -> Call[Predictions]:
    given = None if activation == "softmax" else activation
    return _one("/predict", file, _predictions, "application/json", top_k=top_k, activation=given)


def predict_batch(files: Sequence[File], top_k: int | None) -> Call[BatchPredictions]:
    parts = [("files", (file.name, file.data, file.media_type)) for file in files]
    params = {} if top_k is None else {"top_k": top_k}
    return Call("POST", "/predict/batch", _batch, {"params": params, "files": parts})


def features(file: File, pooling: str | None) -> Call[Features]:
    return _one("/features", file, _array, "application/x-npy", pooling=pooling)


def explain(file: File, class_id: int | None) -> Call[Explanation]:
    return _one("/explain", file, _explanation, "application/json", class_id=class_id)


def overlay(file: File, class_id: int | None) -> Call[bytes]:
    return _one("/explain", file, lambda answer: answer.content, "image/png", class_id=class_id)


MODEL: Call[dict[str, Any]] = Call("GET", "/model", lambda answer: dict(answer.json()))
LABELS: Call[list[dict[str, Any]]] = Call("GET", "/labels", lambda answer: list(answer.json()))
HEALTH: Call[dict[str, Any]] = Call("GET", "/healthz", lambda answer: dict(answer.json()), patient=False)
READY: Call[bool] = Call("GET", "/readyz", lambda answer: answer.is_success, patient=False)


def read(call: Call[R], answer: httpx.Response) -> R:
    if not answer.is_success and call is not READY:
        raise _error(answer.status_code, _document(answer), answer)
    try:
        return call.read(answer)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unexpected(f"{call.path} does not answer as imagenet-serve does") from error


def _document(answer: httpx.Response) -> Mapping[str, Any]:
    """The problem document of the answer; empty if there is none, as in a proxy's answer."""
    try:
        document = answer.json()
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _error(status: int, document: Mapping[str, Any], answer: httpx.Response) -> ApiError:
    detail = document.get("detail") or httpx.codes.get_reason_phrase(status) or "no reason given"
    request_id = document.get("request_id") or answer.headers.get("x-request-id")
    kind = Unavailable if status in AGAIN_LATER else Refused if 400 <= status < 500 else ApiError
    return kind(status, str(document.get("code", "")), str(detail), request_id)


def _ranked(entries: Sequence[Mapping[str, Any]]) -> tuple[Prediction, ...]:
    return tuple(
        Prediction(
            entry["class_id"], entry["wnid"], entry["label"], entry.get("probability"), entry.get("logit")
        )
        for entry in entries
    )


def _timings(document: Mapping[str, float]) -> Timings:
    return Timings(document["decode"], document["queue"], document["inference"], document["total"])


def _predictions(answer: httpx.Response) -> Predictions:
    document = answer.json()
    return Predictions(
        document["request_id"],
        document["model"],
        document["weights"],
        _ranked(document["predictions"]),
        _timings(document["timings_ms"]),
    )


def _batch(answer: httpx.Response) -> BatchPredictions:
    document = answer.json()
    items = [
        BatchItem(entry["filename"], _ranked(entry["predictions"]))
        if entry["status"] == 200
        else BatchItem(entry["filename"], error=_error(entry["status"], entry["error"], answer))
        for entry in document["results"]
    ]
    return BatchPredictions(document["request_id"], document["model"], document["weights"], tuple(items))


def _array(answer: httpx.Response) -> Features:
    array = np.load(io.BytesIO(answer.content), allow_pickle=False)
    return Features(answer.headers["x-request-id"], array)


def _explanation(answer: httpx.Response) -> Explanation:
    document = answer.json()
    names = ("request_id", "model", "weights", "class_id", "wnid", "label", "probability", "method")
    return Explanation(
        **{name: document[name] for name in names},
        grid=np.array(document["grid"], np.float32),
        box=tuple(document["box"]),
        timings_ms=_timings(document["timings_ms"]),
    )
