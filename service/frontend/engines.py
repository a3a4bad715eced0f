"""The engines of a front-end: joined when the supervisor says so, each to its version of its model."""

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

#: Seconds between two looks at a version that is let go.
_LOOK_AGAIN = 0.02


class Engines:
    """Fills a context's models. Lives on the event loop."""

    def __init__(
        self, context: Context, threads: int, memory: DecodeMemory, configure: Callable[[Recipe], None]
    ) -> None:
        """``threads`` decode here, with their ``memory``. ``configure`` hears how pictures will be prepared."""
        self._context = context
        self._threads = threads
        self._memory = memory
        self._configure = configure
        self._connections: dict[int, Connection] = {}
        """By the engine's number."""
        self._gone: set[tuple[int, int]] = set()
        """Models and versions that are never asked again."""

    def __repr__(self) -> str:
        return f"<Engines {self.joined()}>"

    def joined(self) -> list[int]:
        """The numbers of the engines that are there."""
        self._connections = {number: one for number, one in self._connections.items() if not one.failed}
        return list(self._connections)

    def attach(self, message: dict[str, Any], arena: int, link: int, description: int) -> None:
        """Joins the engine that a ``message`` of the supervisor tells of. Owns the descriptors from now on."""
        card = ModelCard.from_bytes(read_blob(description))
        gone = (message["model"], message["version"]) in self._gone
        if gone or message["engine"] in self.joined():  # late news, or it was asked for twice
            os.close(arena)
            os.close(link)
            return
        served = self._served(message["model"], message["version"], card, message["name"])
        memory = Arena(arena, Geometry.from_json(message["geometry"]))
        self._connections[message["engine"]] = served.client.attach(
            memory, Link.of(link), message["number"], message.get("standby", False), _answers(card)
        )

    async def let_go(self, model: int, version: int) -> None:
        """Waits until no request here goes on with that version, and leaves its engines."""
        served = self._context.models.get(model, version)
        if served is None:
            return
        while not served.idle:  # an engine that died comes back for whoever waits
            await asyncio.sleep(_LOOK_AGAIN)
        self._context.models.remove(served)
        self._gone.add((model, version))

    def expect_no_other(self) -> None:
        """None is started any more."""
        for served in self._context.models.all:
            served.client.expect_no_other()

    def detach(self) -> None:
        """Lets go of all of them."""
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
    """What decides what an engine answers to the same pixels, and what they are."""
    return card.name, card.weights, card.sha256, card.preprocessing, len(card.classes), card.feature_shape
