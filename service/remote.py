"""A running server as a classifier: the images travel to its `/predict`, several at a time.

What the server refuses for now (429, 503) is sent again when its `Retry-After` has passed; what it says of an
image is that image's result.
"""

from __future__ import annotations

import mimetypes
import random
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from service.classifier import Identity, Image, Seen, in_order, read, unreadable
from service.errors import ConfigurationError
from service.labels import ClassLabel

#: Seconds for which a server may go on refusing one request before this gives up on it.
PATIENCE = 60.0
#: Seconds for one answer: above any deadline that the service sets itself.
_TIMEOUT = 120.0
#: Seconds until another try where the server did not say.
_PAUSE = 0.5
#: Tries for an image on whose way the connection broke: it may be the image that breaks it.
_BROKEN = 3
_AGAIN_LATER = frozenset({429, 502, 503, 504})


class RemoteClassifier:
    """The server at ``url``. Use it in a ``with`` block.

    Raises `ConfigurationError` in one sentence when the server cannot be reached, wants another key, or
    does not become ready.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        top_k: int | None = None,
        concurrency: int = 16,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """``top_k`` None takes the server's own. ``transport`` is for tests without a socket."""
        self._url = url.rstrip("/")
        self._top_k = top_k
        self._concurrency = concurrency
        self._met = False
        """Whether it has answered once: then a refused connection may be a restart."""
        secure = url.startswith("https:")
        try:
            self._http = httpx.Client(
                base_url=self._url,
                timeout=_TIMEOUT,
                headers={"authorization": f"Bearer {key}"} if key else {},
                limits=httpx.Limits(max_connections=concurrency),
                transport=transport,
                verify=secure,  # without TLS there is nothing to verify, and the certificates take 0.1 s to load
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise ConfigurationError(f"{url} is no address of a server: {error}") from error

    def __enter__(self) -> RemoteClassifier:
        try:
            self._identity = self._introduce()
            self._met = True
        except BaseException:
            self._http.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    @property
    def identity(self) -> Identity:
        return self._identity

    def look(self, images: Iterable[Image]) -> Iterator[Seen]:
        """One result for each image, in their order."""
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="ask") as pool:
            yield from in_order(pool, self._ask, images, ahead=2 * self._concurrency)

    def _introduce(self) -> Identity:
        model, labels = self._get("/model"), self._get("/labels")
        accuracy = model.get("accuracy") or {}
        return Identity(
            model=model["name"],
            weights=model["weights"],
            classes=tuple(ClassLabel(entry["class_id"], entry["wnid"], entry["label"]) for entry in labels),
            top1=accuracy.get("top1"),
            top5=accuracy.get("top5"),
        )

    def _get(self, path: str) -> Any:
        try:
            answer = self._send("GET", path)
        except httpx.TransportError as error:
            raise ConfigurationError(
                f"{self._url} does not answer: {str(error) or type(error).__name__}"
            ) from error
        if not answer.is_success:
            raise ConfigurationError(f"{self._url}{path} answered {answer.status_code}: {_detail(answer)}")
        try:
            return answer.json()
        except ValueError as error:
            raise ConfigurationError(f"{self._url} does not answer as imagenet-serve does") from error

    def _ask(self, image: Image) -> Seen:
        try:
            data = read(image)
        except OSError as error:
            return unreadable(error)
        query = {} if self._top_k is None else {"top_k": self._top_k}
        headers = {"content-type": _media_type(image)}
        try:
            answer = self._send("POST", "/predict", params=query, content=data, headers=headers)
        except httpx.TransportError as error:
            return Seen(error=f"the connection broke: {str(error) or type(error).__name__}")
        if not answer.is_success:
            return Seen(error=_detail(answer))
        document = answer.json()
        return Seen(tuple(document["predictions"]), milliseconds=document["timings_ms"]["total"])

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        """The answer, once it is one that another try would not change."""
        give_up = time.monotonic() + PATIENCE
        broken = 0
        while True:
            try:
                answer = self._http.request(method, path, **request)
            except (httpx.ConnectError, httpx.UnsupportedProtocol) as error:
                if not self._met or time.monotonic() > give_up:
                    raise ConfigurationError(f"there is no server at {self._url}: {error}") from error
                time.sleep(_PAUSE)
                continue
            except httpx.TransportError:
                broken += 1
                if broken == _BROKEN:
                    raise
                continue
            if answer.status_code == 401:
                raise ConfigurationError(
                    f"{self._url} wants a key: give it with --api-key or IMAGENET_API_KEY"
                )
            pause = pause_before_retry(answer.status_code, answer.headers.get("retry-after"))
            if pause is None:
                return answer
            if time.monotonic() + pause > give_up:
                raise ConfigurationError(
                    f"{self._url} kept answering {answer.status_code} for {PATIENCE:.0f} s: {_detail(answer)}"
                )
            # Not all of them at the same moment: that is what it was too much for.
            time.sleep(pause * random.uniform(1, 1.25))


def pause_before_retry(status: int, retry_after: str | None) -> float | None:
    """Seconds to wait before the same request is worth another try; None if it is not."""
    if status not in _AGAIN_LATER:
        return None
    try:
        return max(float(retry_after or _PAUSE), 0.0)
    except ValueError:  # a date, which this service never sends; something in between may
        return _PAUSE


def _media_type(image: Image) -> str:
    guessed = mimetypes.guess_type(image.name)[0] if isinstance(image, Path) else None
    return guessed if guessed and guessed.startswith("image/") else "application/octet-stream"


def _detail(answer: httpx.Response) -> str:
    """The problem's own words, where something else has answered the status' name."""
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return answer.reason_phrase or f"status {answer.status_code}"
