"""A request to a model, from its admission to the model's answer. Every route that classifies images uses it.

    Admission ──async with──▶ counted, and there is room ──receive──▶ body read ──infer──▶ slot, decoder, engine
        │                          │                                  └─ from here on a disconnect cancels the task
        which model, until when    429 before the body is read

However the block ends, the slot is freed and the watch for a disconnect ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Self, TypeVar

import numpy as np
from fastapi import Request
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect

from service.api.context import Context, context_of
from service.api.request_state import RequestState, request_state_of
from service.engine.client import Slot, SlotAnswer
from service.errors import NotANumber, RequestError
from service.shared.outputs import OutputKind, OutputRequest
from service.shared.ranking import finite
from service.shared.writing import Work

T = TypeVar("T")
R = TypeVar("R")

#: Seconds before a task begins to watch for a disconnect, so that faster requests save its cost.
_UNWATCHED = 0.01


class Admission:
    """A request to a model: the model and the deadline. ``async with`` admits it.

    Construction and admission are two steps, so that a route can refuse wrong parameters before anything is counted.
    """

    def __init__(
        self, context: Context, state: RequestState, name: str | None = None, request: Request | None = None
    ) -> None:
        """``name`` is the model's name; None means the default one. The deadline is `RequestState.due`.

        Raises `NotReady`, `NotFound`. Without a ``request`` there is no watch for a disconnect.
        """
        self.context = context
        self.state = state
        self.served = state.ask(context, name)
        self.deadline = state.due
        """The deadline of the answer, in seconds of the monotonic clock."""
        self._request = request
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, request: Request, name: str | None = None) -> Self:
        """The admission of an HTTP request. Raises `InvalidParameter` for its headers, `NotReady`, `NotFound`."""
        context, state = context_of(request), request_state_of(request)
        state.deadline(request, context.settings.request_timeout_ms)
        return cls(context, state, name, request)

    async def __aenter__(self) -> Self:
        """Counts an arrival. Raises `Overloaded` if no slot is free, or the answer would miss the deadline."""
        if not self.state.bulk:
            self.served.client.record_arrivals()
        self.served.client.check_capacity(self.deadline, self.state.bulk)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if kind is asyncio.CancelledError and self.state.gone:
            assert self._task is not None
            self._task.uncancel()
            raise ClientDisconnect from None

    async def receive(self, body: Awaitable[T]) -> T:
        """Awaits ``body``, which reads the request, and returns its result. Raises what it raises."""
        content = await body
        self.received()
        return content

    def received(self) -> None:
        """Notes the end of the stage ``receive``, and begins to watch for a disconnect after `_UNWATCHED` seconds."""
        self.state.stages["receive"] = time.monotonic() - self.state.started
        if self._request is not None:
            self._task = asyncio.current_task()
            self._timer = asyncio.get_running_loop().call_later(_UNWATCHED, self._start_watching)

    def _start_watching(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._cancel_on_disconnect())

    async def _cancel_on_disconnect(self) -> None:
        assert self._request is not None
        assert self._task is not None
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self.state.gone = True
        self._task.cancel()

    async def infer(self, work: Work, length: int, wanted: OutputRequest = OutputKind.CLASSIFY) -> SlotAnswer:
        """Takes a slot, lets ``work`` fill it, and returns ``length`` float32 of the output ``wanted``.

        Raises `Overloaded`, and what `infer_in` raises.
        """
        with await self.served.client.admit(self.deadline, self.state.bulk) as slot:
            return await self.infer_in(slot, work, length, wanted)

    async def infer_in(
        self, slot: Slot, work: Work, length: int, wanted: OutputRequest = OutputKind.CLASSIFY
    ) -> SlotAnswer:
        """Does what `infer` does in a taken ``slot``. Raises `NotANumber`, and what ``work`` and `Slot` raise."""
        metrics = self.context.metrics
        began = time.monotonic()
        await slot.fill(self.context.decoders, work, self.deadline)
        decode = time.monotonic() - began
        answer = await slot.answer(self.deadline, length, wanted)
        try:
            finite(answer.result)
        except NotANumber:
            metrics.nan_outputs.inc()
            raise
        stages = {"decode": decode, "queue": answer.queue, "inference": answer.inference}
        for stage, seconds in stages.items():
            metrics.stage_duration.labels(stage).observe(seconds)
        if self.context.shadow is not None and wanted is OutputKind.CLASSIFY:
            self.context.shadow.compare(slot, answer)
        self.state.record_stages(stages, answer)
        return answer

    async def infer_each(self, items: Sequence[T], infer: Callable[[T, Slot], Awaitable[R]]) -> list[R]:
        """Runs ``infer`` for every item, each in a slot of its own, and returns the results in order.

        Raises `Overloaded` if there is no slot for the first item in time. The other items wait for their slots. The
        first error cancels all other items and is raised itself, not as a group.
        """
        client, bulk = self.served.client, self.state.bulk
        if not bulk:
            client.record_arrivals(len(items) - 1)

        async def one(item: T, slot: Slot | None) -> R:
            with slot or await client.acquire_in_turn(self.deadline, bulk) as place:
                return await infer(item, place)

        # This block frees the first slot even if the task that should use it is cancelled before it begins.
        with await client.admit(self.deadline, bulk) as first:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(one(item, None if place else first))
                        for place, item in enumerate(items)
                    ]
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def logits(self, works: Sequence[Work]) -> NDArray[np.float32]:
        """The logits of the N images that ``works`` put into slots, float32 ``[N, classes]``, in order.

        Raises the first `RequestError` of any image, with the image's number if there are several.
        """
        classes = len(self.served.card.classes)
        if len(works) == 1:  # most requests: saves the group of tasks
            return (await self.infer(works[0], classes)).result[np.newaxis]

        async def one(numbered: tuple[int, Work], slot: Slot) -> NDArray[np.float32]:
            number, work = numbered
            try:
                return (await self.infer_in(slot, work, classes)).result
            except RequestError as error:
                raise type(error)(f"image {number}: {error}") from None

        return np.stack(await self.infer_each(list(enumerate(works)), one))
