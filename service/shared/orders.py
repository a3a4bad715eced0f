"""What a front-end orders of the supervisor for its clients, and the answers that come back."""

from __future__ import annotations

import asyncio
from typing import Any

from service import errors
from service.shared.transport import Channel

#: By code: what the supervisor may answer. `NotReady` and `Draining` are for later, the others for good.
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
    """Lives on the event loop."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._last = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    def __repr__(self) -> str:
        return f"<Orders {len(self._waiting)} waiting>"

    def give(self, action: str, name: str | None, **wish: Any) -> asyncio.Future[dict[str, Any]]:
        """Lets the supervisor do ``action`` with the model ``name``. The future has the end of it, however long.

        It raises the `ServiceError` that says why nothing was changed. Nobody need wait for it.
        """
        self._last += 1
        done: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[self._last] = done
        done.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        if not self._channel.send("order", number=self._last, action=action, name=name, **wish):
            done.set_exception(errors.Draining("the service is about to end"))
        return done

    def hear(self, message: dict[str, Any]) -> None:
        """The supervisor's answer to one of them. Nobody may wait for it any more."""
        done = self._waiting.pop(message["number"])
        if done.done():
            return
        if message["code"] is None:
            done.set_result(message["result"])
        else:
            done.set_exception(_ERRORS[message["code"]](message["words"]))
