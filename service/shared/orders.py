"""Orders that a front-end sends to the supervisor for its clients, and the supervisor's answers."""

from __future__ import annotations

import asyncio
from typing import Any

from service import errors
from service.shared.transport import Channel

#: The errors that the supervisor may answer, by their codes.
_ERRORS: dict[str, type[errors.ServiceError]] = {
    error.code: error
    for error in (
        errors.Conflict,
        errors.Draining,
        errors.InvalidParameter,
        errors.LoadFailed,
        errors.NotEnoughMemory,
        errors.NotFound,
        errors.NotReady,
    )
}


class Orders:
    """The orders of one front-end that wait for an answer. Used on the event loop only."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._last = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    def __repr__(self) -> str:
        return f"<Orders {len(self._waiting)} waiting>"

    def give(self, action: str, name: str | None, **wish: Any) -> asyncio.Future[dict[str, Any]]:
        """Sends the order to do ``action`` with the model ``name``. Returns the future of its result.

        The future has no time limit. It raises a `ServiceError` if nothing was changed. It need not be awaited.
        """
        self._last += 1
        done: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[self._last] = done
        done.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        if not self._channel.send("order", number=self._last, action=action, name=name, **wish):
            done.set_exception(errors.Draining("the service is about to end"))
        return done

    def receive_reply(self, message: dict[str, Any]) -> None:
        """Completes an order's future with the supervisor's answer."""
        done = self._waiting.pop(message["number"])
        if done.done():
            return
        if message["code"] is None:
            done.set_result(message["result"])
        else:
            done.set_exception(_ERRORS[message["code"]](message["words"]))
