"""The two clients. They send, wait and read; `service.client.retry` decides what is sent again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

import httpx

from service.client import calls
from service.client.answers import BatchPredictions, Explanation, Features, Predictions
from service.client.calls import Call
from service.client.errors import Unreachable
from service.client.photos import Photo, read_all_in_thread, read_in_thread, read_photo, read_photos
from service.client.retry import Patience

R = TypeVar("R")
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)

#: Seconds to wait for an answer: longer than the service's own deadline; and what is added to a given deadline.
_TIMEOUT, _GRACE = 120.0, 5.0


#: The answer to an empty list of photos, which needs no request.
NOTHING = BatchPredictions(request_id="", model="", weights="", results=())


class _Client(Generic[Http]):
    """The settings of both clients."""

    _http_class: ClassVar[Callable[..., Any]]
    """The class of httpx that sends the requests."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        timeout: float | None = None,
        patience: float = 30.0,
        connections: int = 100,
        bulk: bool = False,
        transport: httpx.BaseTransport | httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._patience = Patience(self.url, patience, deadlined=timeout is not None)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        if bulk:
            headers["x-priority"] = "bulk"
        if timeout is not None:
            headers["x-request-timeout-ms"] = f"{1000 * timeout:g}"
        try:
            self._http: Http = self._http_class(
                base_url=self.url,
                headers=headers,
                timeout=_TIMEOUT if timeout is None else timeout + _GRACE,
                # Loading the certificates takes 0.1 s, and without TLS there is nothing to verify.
                verify=url.startswith("https:"),
                limits=httpx.Limits(max_connections=connections),
                transport=transport,
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise Unreachable(f"{url} is no address of a server: {error}") from error

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"


class Client(_Client[httpx.Client]):
    """A client of the service at ``url``. Threads may share it. Use it in a ``with`` block, or `close` it.

    ``key`` is an API key. ``timeout`` is the deadline, in seconds, that the service keeps for each request; without it
    the service's own holds. ``patience`` is the time, in seconds, for which a request is sent again while the service
    refuses it for the moment; 0 means never. ``connections`` is the largest number of open connections. With ``bulk``
    requests have the lower priority. All methods raise `ClientError`.
    """

    _http_class = httpx.Client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def predict(
        self, photo: Photo, *, top_k: int | None = None, activation: Literal["softmax", "none"] = "softmax"
    ) -> Predictions:
        """The best classes of one photo, with probabilities, or with logits if ``activation`` is "none"."""
        return self._ask(calls.predict(read_photo(photo), top_k, activation))

    def predict_batch(self, photos: Iterable[Photo], *, top_k: int | None = None) -> BatchPredictions:
        """The best classes of several photos, in one request. An unusable photo has an error in its `BatchItem`.

        Without photos the answer is empty and no request is sent.
        """
        files = read_photos(photos)
        return self._ask(calls.predict_batch(files, top_k)) if files else NOTHING

    def features(self, photo: Photo, *, pooling: Literal["avg", "max", "none"] | None = None) -> Features:
        """The backbone's output for one photo, pooled as given, or as the service does by default."""
        return self._ask(calls.features(read_photo(photo), pooling))

    def explain(self, photo: Photo, *, class_id: int | None = None) -> Explanation:
        """The contribution of each part of the photo to a class, by default the top one."""
        return self._ask(calls.explain(read_photo(photo), class_id))

    def overlay(self, photo: Photo, *, class_id: int | None = None) -> bytes:
        """The explanation as a PNG: the photo with the contributions drawn over it."""
        return self._ask(calls.overlay(read_photo(photo), class_id))

    def model(self) -> dict[str, Any]:
        """The card of the loaded model, as `GET /model` answers."""
        return self._ask(calls.MODEL)

    def labels(self) -> list[dict[str, Any]]:
        """All classes of the model: class_id, wnid and label of each."""
        return self._ask(calls.LABELS)

    def health(self) -> dict[str, Any]:
        """The service's state, as `GET /healthz` answers. Sent once, without patience."""
        return self._ask(calls.HEALTH)

    def ready(self) -> bool:
        """True if the service is ready to answer. Sent once, without patience."""
        return self._ask(calls.READY)

    def _ask(self, call: Call[R]) -> R:
        tries = self._patience.tries(several=call.patient)
        pause = next(tries)
        while True:
            time.sleep(pause)
            try:
                outcome: httpx.Response | httpx.TransportError = self._http.request(
                    call.method, call.path, **call.options
                )
            except httpx.TransportError as error:
                outcome = error
            try:
                pause = tries.send(outcome)
            except StopIteration as answered:
                return calls.read(call, answered.value)


class AsyncClient(_Client[httpx.AsyncClient]):
    """`Client` for an event loop: the same settings, methods, answers and errors. Use it in ``async with``."""

    _http_class = httpx.AsyncClient

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def predict(
        self, photo: Photo, *, top_k: int | None = None, activation: Literal["softmax", "none"] = "softmax"
    ) -> Predictions:
        return await self._ask(calls.predict(await read_in_thread(photo), top_k, activation))

    async def predict_batch(self, photos: Iterable[Photo], *, top_k: int | None = None) -> BatchPredictions:
        files = await read_all_in_thread(photos)
        return await self._ask(calls.predict_batch(files, top_k)) if files else NOTHING

    async def features(
        self, photo: Photo, *, pooling: Literal["avg", "max", "none"] | None = None
    ) -> Features:
        return await self._ask(calls.features(await read_in_thread(photo), pooling))

    async def explain(self, photo: Photo, *, class_id: int | None = None) -> Explanation:
        return await self._ask(calls.explain(await read_in_thread(photo), class_id))

    async def overlay(self, photo: Photo, *, class_id: int | None = None) -> bytes:
        return await self._ask(calls.overlay(await read_in_thread(photo), class_id))

    async def model(self) -> dict[str, Any]:
        return await self._ask(calls.MODEL)

    async def labels(self) -> list[dict[str, Any]]:
        return await self._ask(calls.LABELS)

    async def health(self) -> dict[str, Any]:
        return await self._ask(calls.HEALTH)

    async def ready(self) -> bool:
        return await self._ask(calls.READY)

    async def _ask(self, call: Call[R]) -> R:
        tries = self._patience.tries(several=call.patient)
        pause = next(tries)
        while True:
            await asyncio.sleep(pause)
            try:
                outcome: httpx.Response | httpx.TransportError = await self._http.request(
                    call.method, call.path, **call.options
                )
            except httpx.TransportError as error:
                outcome = error
            try:
                pause = tries.send(outcome)
            except StopIteration as answered:
                return calls.read(call, answered.value)
