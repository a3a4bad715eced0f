"""The versions of models that a front-end is connected to, each with its card and its client of the engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.engine.client import EngineClient
from service.errors import NotFound
from service.images.decoders.picture import Picture, Recipe
from service.observability.card import ModelCard
from service.options.nearest import did_you_mean, one_of
from service.shared.board import Board


@dataclass(eq=False)
class Served:
    """One version of a model. ``place`` is the model's number; ``uses`` counts the requests that use this version."""

    place: int
    version: int
    card: ModelCard
    client: EngineClient
    recipe: Recipe
    uses: int = 0

    def __repr__(self) -> str:
        return f"<Served {self.card.name} {self.version}, {self.uses} uses>"

    @property
    def idle(self) -> bool:
        """True if no request here uses it or waits for it."""
        return not self.uses and not self.client.pending

    def classifier(self) -> ModelCard:
        """The card, for a model with classes. Raises `NotFound` for a checkpoint without a head."""
        if not self.card.classes:
            raise NotFound("this checkpoint has no classifier; it serves /features only")
        return self.card

    def picture(self, data: bytes | memoryview, drawn: bool = False) -> Picture:
        """The work that fills a slot with the image ``data``. With ``drawn`` it also keeps the photo."""
        return Picture(data, self.recipe, drawn)


class Models:
    """All versions that this front-end is connected to. The supervisor's ``board`` holds those that answer."""

    def __init__(self, board: Board | None = None) -> None:
        self._board = board or Board()
        self._served: dict[tuple[int, int], Served] = {}

    def __repr__(self) -> str:
        return f"<Models {list(self._served.values())}>"

    def get(self, place: int, version: int) -> Served | None:
        """The version, or None unless this front-end has ever been connected to one of its engines."""
        return self._served.get((place, version))

    def add(self, served: Served) -> Served:
        """Adds a version, which answers as soon as the board holds it."""
        self._served[served.place, served.version] = served
        return served

    def remove(self, served: Served) -> None:
        """Removes a version for good."""
        served.client.detach()
        self._served.pop((served.place, served.version), None)

    def current(self, place: int = 0) -> Served | None:
        """The version of a model that answers now; None before there is one. Model 0 is the default."""
        return self._served.get((place, self._board.version(place)))

    @property
    def answering(self) -> list[Served]:
        """The version of each model that answers now, the default model first."""
        places = sorted({place for place, _ in self._served} - {Board.shadow})
        return [served for place in places if (served := self.current(place)) is not None]

    @property
    def shadow(self) -> Served | None:
        """The shadow's version, if there is one."""
        return self.current(Board.shadow)

    @property
    def complete(self) -> bool:
        """True if every model of the service has a living engine, as far as this front-end knows."""
        answering = self.answering
        known = len(answering) >= max(1, self._board.models)
        return known and all(served.client.connected for served in answering)

    @property
    def all(self) -> Sequence[Served]:
        """All versions, those that end or are kept included."""
        return list(self._served.values())

    def named(self, name: str) -> Served:
        """The model of that name. Raises `NotFound`, whose message lists the names."""
        answering = self.answering
        for served in answering:
            if served.card.name == name:
                return served
        names = [served.card.name for served in answering] or ["none yet"]
        known = f"the one that is loaded is {names[0]}" if len(names) == 1 else f"there are {one_of(names)}"
        raise NotFound(f"there is no such model, {name[:100]!r}; {known}{did_you_mean(name, names)}")
