"""A classifier that sends its images to a running server's `/predict`, several at the same time.

Requests that the server refuses for the moment are sent again (`service.client`). An error about an image becomes that
image's result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx

from service.classifier import Classification, Identity, Image, in_order, unreadable
from service.client import ApiError, Broken, Client, ClientError, Prediction, Unavailable, Unexpected
from service.errors import ConfigurationError
from service.labels import ClassLabel

#: Seconds for which one request is sent again while the server refuses it.
PATIENCE = 60.0


class RemoteClassifier:
    """Classifies with the server at ``url``. Use it in a ``with`` block.

    Raises `ConfigurationError`, one sentence, if the server cannot be reached, refuses the key or does not become
    ready.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        top_k: int | None = None,
        concurrency: int = 16,
        bulk: bool = False,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """``top_k`` None means the server's own. ``concurrency`` is the number of requests in flight.

        With ``bulk`` the requests have the lower priority. ``transport`` is for tests without a socket.
        """
        self._top_k = top_k
        self._concurrency = concurrency
        try:
            self._client = Client(
                url, key=key, patience=PATIENCE, connections=concurrency, bulk=bulk, transport=transport
            )
        except ClientError as error:
            raise ConfigurationError(str(error)) from error

    def __enter__(self) -> RemoteClassifier:
        try:
            self._identity = self._read_identity()
        except ClientError as error:
            self._client.close()
            raise self._given_up(error) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    @property
    def identity(self) -> Identity:
        return self._identity

    def classify(self, images: Iterable[Image]) -> Iterator[Classification]:
        """One result for each image, in their order."""
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="ask") as pool:
            yield from in_order(pool, self._ask, images, ahead=2 * self._concurrency)

    def _read_identity(self) -> Identity:
        model, labels = self._client.model(), self._client.labels()
        try:
            accuracy = model.get("accuracy") or {}
            return Identity(
                model=model["name"],
                weights=model["weights"],
                classes=tuple(
                    ClassLabel(entry["class_id"], entry["wnid"], entry["label"]) for entry in labels
                ),
                top1=accuracy.get("top1"),
                top5=accuracy.get("top5"),
            )
        except (KeyError, TypeError) as error:
            raise Unexpected("/model and /labels do not answer as imagenet-serve does") from error

    def _ask(self, image: Image) -> Classification:
        try:
            answer = self._client.predict(image, top_k=self._top_k)
        except OSError as error:
            return unreadable(error)
        except Broken as error:
            return Classification(error=f"the connection broke: {error}")
        except ApiError as error:
            if error.status == 401 or isinstance(error, Unavailable):
                raise self._given_up(error) from error
            return Classification(error=error.detail)
        except ClientError as error:
            raise self._given_up(error) from error
        return Classification(tuple(map(_entry, answer.predictions)), milliseconds=answer.timings_ms.total)

    def _given_up(self, error: ClientError) -> ConfigurationError:
        url = self._client.url
        if isinstance(error, Unavailable):
            return ConfigurationError(
                f"{url} kept answering {error.status} for {PATIENCE:.0f} s: {error.detail}"
            )
        if isinstance(error, ApiError) and error.status == 401:
            return ConfigurationError(f"{url} wants a key: give it with --api-key or IMAGENET_API_KEY")
        if isinstance(error, ApiError):
            return ConfigurationError(f"{url} answered {error.status}: {error.detail}")
        if isinstance(error, Unexpected):
            return ConfigurationError(f"{url} does not answer as imagenet-serve does")
        if isinstance(error, Broken):
            return ConfigurationError(f"{url} does not answer: {error}")
        return ConfigurationError(str(error))


def _entry(prediction: Prediction) -> dict[str, object]:
    return {
        "class_id": prediction.class_id,
        "wnid": prediction.wnid,
        "label": prediction.label,
        "probability": prediction.probability,
    }
