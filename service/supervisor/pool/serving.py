"""The supervisor's resources of a ready engine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from service.engine.arena import Geometry
from service.observability.card import ModelCard
from service.shared import transport
from service.supervisor.child import Child
from service.supervisor.lifecycle.actions import LinkFrontEnd


@dataclass(frozen=True)
class Serving:
    """The data that front-ends need of an engine. The supervisor owns the descriptors ``arena`` and ``card``."""

    geometry: dict[str, Any]
    arena: int
    card: int

    def read_card(self) -> ModelCard:
        """The card of its model."""
        return ModelCard.from_bytes(os.pread(self.card, os.fstat(self.card).st_size, 0))

    def read_geometry(self) -> Geometry:
        return Geometry.from_json(self.geometry)

    def join(self, engine: Child, front_end: Child, link: LinkFrontEnd) -> None:
        """Sends the engine and the front-end the two ends of a new link."""
        ours, theirs = transport.socket_pair()
        engine.channel.send("front-end", number=link.number, descriptors=[ours.fileno()])
        front_end.channel.send(
            "engine",
            engine=link.engine,
            number=link.number,
            geometry=self.geometry,
            **link.told,
            descriptors=[self.arena, theirs.fileno(), self.card],
        )
        ours.close()
        theirs.close()

    def close(self) -> None:
        os.close(self.arena)
        os.close(self.card)
