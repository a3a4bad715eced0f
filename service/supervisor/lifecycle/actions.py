"""What the supervisor is to do: every event of the `Lifecycle` returns some, to be carried out in this order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from service.settings import Settings
from service.supervisor.lifecycle.parts import FrontEnd
from service.supervisor.lifecycle.seat import Seat
from service.supervisor.lifecycle.versions import Servable


class Action:
    """One step."""


@dataclass(frozen=True)
class StartFrontEnd(Action):
    front_end: FrontEnd


@dataclass(frozen=True)
class StartEngine(Action):
    """The engine that ``seat`` has from now on."""

    seat: Seat
    engine: int
    shadow: bool


@dataclass(frozen=True)
class Link(Action):
    """Joins a front-end and an engine that takes work, which will know it by ``number``."""

    front_end: int
    engine: int
    number: int
    told: Mapping[str, Any]
    """What else the front-end hears of the engine."""


@dataclass(frozen=True)
class Send(Action):
    """A message without descriptors, over the channel of ``part``."""

    part: int
    kind: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Kill(Action):
    """Ends a part at once."""

    part: int


@dataclass(frozen=True)
class Show(Action):
    """Lets ``version`` of the model at ``place`` answer from now on."""

    place: int
    version: int


@dataclass(frozen=True)
class ClosePort(Action):
    """The front-ends have their copies; when they close these, clients are refused at once."""


class Asker(NamedTuple):
    """Who waits for the end of an order: a front-end, by the ``order``'s number."""

    front_end: int
    order: int


@dataclass(frozen=True)
class Wish:
    """What a load asks for beside settings."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """By name: those that are to be other than they are."""
    other_classes: bool = False
    least_agreement: float = 0.0


@dataclass(frozen=True)
class Load(Action):
    """Looks whether the version that ``wish`` describes can be loaded: `load_possible` or `load_refused` follows.

    ``asker`` is None where nobody waits for it.
    """

    servable: Servable
    wish: Wish
    asker: Asker | None


@dataclass(frozen=True)
class Check(Action):
    """Runs known images through engines over links of these numbers. `checked` follows unless `EndCheck` does."""

    version: int
    wish: Wish
    new: Mapping[int, int]
    """By engine of the new version: the number of the link."""
    old: tuple[int, int] | None
    """The same of an engine of the version that answers, if there is one."""
    taken: frozenset[str]
    """Names that the new model may not have."""


@dataclass(frozen=True)
class EndCheck(Action):
    """Nobody wants to know any more."""


@dataclass(frozen=True)
class MeasureShadow(Action):
    """Looks whether there is memory for the shadow: `shadow_measured` follows."""

    settings: Settings


@dataclass(frozen=True)
class Say(Action):
    """A line for the log."""

    level: int
    line: str
