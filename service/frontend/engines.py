"""The engines that a front-end is connected to, each for one version of one model."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

from service.api.context import Context
from service.api.served import Served
from service.engine.arena import Arena, Geometry
from service.engine.client import EngineClient
from service.engine.connection import Connection
from service.engine.decode_memory import DecodeMemory
from service.images.decoders.picture import Recipe
from service.observability.card import ModelCard
from service.shared.transport import Link, read_blob

#: Seconds between two checks whether a version that is being left is idle.
_POLL = 0.02


class JoinedEngines:
    """Connects to engines and fills a context's models with them. Used on the event loop."""

    def __init__(
        self, context: Context, threads: int, memory: DecodeMemory, configure: Callable[[Recipe], None]
    ) -> None:
        """``threads`` is the number of decoders here, ``memory`` theirs. ``configure`` gets each new recipe."""
        self._context = context
        self._threads = threads
        self._memory = memory
        self._configure = configure
        self._connections: dict[int, Connection] = {}
        """The connections by the engines' numbers."""
        self._gone: set[tuple[int, int]] = set()
        """Models with their versions that this front-end has left for good."""

    def __repr__(self) -> str:
        return f"<JoinedEngines {self.joined()}>"

    def joined(self) -> list[int]:
        """The numbers of the connected engines."""
        self._connections = {number: one for number, one in self._connections.items() if not one.failed}
        return list(self._connections)

    def attach(self, message: dict[str, Any], arena: int, link: int, description: int) -> None:
        """Connects to the engine of a ``message`` of the supervisor, and owns the three descriptors from now on."""
        card = ModelCard.from_bytes(read_blob(description))
        gone = (message["model"], message["version"]) in self._gone
        if gone or message["engine"] in self.joined():  # the message is late, or was sent twice
            os.close(arena)
            os.close(link)
            return
        served = self._served(message["model"], message["version"], card, message["name"])
        memory = Arena(arena, Geometry.from_json(message["geometry"]))
        self._connections[message["engine"]] = served.client.attach(
            memory, Link.of(link), message["number"], message.get("standby", False), _answers(card)
        )

    async def leave(self, model: int, version: int) -> None:
        """Waits until no request here uses that version, then leaves its engines."""
        served = self._context.models.get(model, version)
        if served is None:
            return
        while not served.idle:  # requests of an engine that died wait for its successor
            await asyncio.sleep(_POLL)
        self._context.models.remove(served)
        self._gone.add((model, version))

    def expect_no_other(self) -> None:
        """Tells all clients that no more engines will be started."""
        for served in self._context.models.all:
            served.client.expect_no_other()

    def detach(self) -> None:
        """Closes the connections to all engines."""
        for served in self._context.models.all:
            served.client.detach()

    def _served(self, model: int, version: int, card: ModelCard, name: str | None) -> Served:
        context = self._context
        card = card if name is None else replace(card, name=name)
        recipe = context.recipe(card)
        served = context.models.get(model, version)
        if served is None:
            client = EngineClient(threads=self._threads, memory=self._memory)
            client.on_cancelled(context.metrics.cancelled.inc)
            client.on_resubmitted(context.metrics.resubmitted.inc)
            served = context.models.add(Served(model, version, card, client, recipe))
        served.card, served.recipe = card, recipe
        self._configure(recipe)
        return served


def _answers(card: ModelCard) -> Hashable:
    """The identity of an engine's answers: engines with equal values prepare and answer an image in the same way."""
    return card.name, card.weights, card.sha256, card.preprocessing, len(card.classes), card.feature_shape
