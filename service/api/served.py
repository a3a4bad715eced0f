"""The models that a front-end can ask, in their versions: each with its description and the door to its engines."""

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
    """One version of a model. ``uses`` counts the requests that go on with it to their end."""

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
        """Whether nobody here waits for it any more."""
        return not self.uses and not self.client.pending

    def classifier(self) -> ModelCard:
        """The description of a model that has classes. Raises `NotFound` for a checkpoint without a head."""
        if not self.card.classes:
            raise NotFound(
                "this checkpoint has no classifier: it serves /features, and nothing guesses in its place"
            )
        return self.card

    def picture(self, data: bytes | memoryview, drawn: bool = False) -> Picture:
        """``data``, to fill a slot with. ``drawn`` keeps the photo, too."""
        return Picture(data, self.recipe, drawn)


class Models:
    """Every version that this front-end is joined to. The supervisor's ``board`` says which of them answer."""

    def __init__(self, board: Board | None = None) -> None:
        self._board = board or Board()
        self._served: dict[tuple[int, int], Served] = {}

    def __repr__(self) -> str:
        return f"<Models {list(self._served.values())}>"

    def get(self, place: int, version: int) -> Served | None:
        """That version, if this front-end has ever been joined to one of its engines."""
        return self._served.get((place, version))

    def add(self, served: Served) -> Served:
        """From now on it can be asked, as soon as the board shows it."""
        self._served[served.place, served.version] = served
        return served

    def remove(self, served: Served) -> None:
        """It is never asked again."""
        served.client.detach()
        self._served.pop((served.place, served.version), None)

    def current(self, place: int = 0) -> Served | None:
        """The version of a model that answers now; None before there is one. The first model is the default."""
        return self._served.get((place, self._board.version(place)))

    @property
    def answering(self) -> list[Served]:
        """The version of each model that answers now, the default first."""
        places = sorted({place for place, _ in self._served} - {Board.shadow})
        return [served for place in places if (served := self.current(place)) is not None]

    @property
    def shadow(self) -> Served | None:
        """The model that answers nobody, if there is one."""
        return self.current(Board.shadow)

    @property
    def complete(self) -> bool:
        """Whether every model of the service can be asked, as far as this front-end knows."""
        answering = self.answering
        known = len(answering) >= max(1, self._board.models)
        return known and all(served.client.connected for served in answering)

    @property
    def all(self) -> Sequence[Served]:
        """Those that end or are kept as well."""
        return list(self._served.values())

    def named(self, name: str) -> Served:
        """The model of that name. Raises `NotFound` that lists those that there are."""
        answering = self.answering
        for served in answering:
            if served.card.name == name:
                return served
        names = [served.card.name for served in answering] or ["none yet"]
        known = f"the one that is loaded is {names[0]}" if len(names) == 1 else f"there are {one_of(names)}"
        raise NotFound(f"there is no such model, {name[:100]!r}; {known}{did_you_mean(name, names)}")
