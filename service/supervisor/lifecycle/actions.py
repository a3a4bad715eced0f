"""The actions of the supervisor. Every event of the `Lifecycle` returns some, to be carried out in their order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from service.settings import Settings
from service.supervisor.lifecycle.parts import FrontEnd
from service.supervisor.lifecycle.seat import Seat
from service.supervisor.lifecycle.versions import Servable


class Action:
    """One action."""


@dataclass(frozen=True)
class StartFrontEnd(Action):
    front_end: FrontEnd


@dataclass(frozen=True)
class StartEngine(Action):
    """Starts the engine number ``engine`` for ``seat``."""

    seat: Seat
    engine: int
    shadow: bool


@dataclass(frozen=True)
class LinkFrontEnd(Action):
    """Connects a front-end with a ready engine, in whose arena the front-end has the ``number``."""

    front_end: int
    engine: int
    number: int
    told: Mapping[str, Any]
    """Further fields of the message to the front-end."""


@dataclass(frozen=True)
class Send(Action):
    """Sends a message without descriptors over the channel of ``part``."""

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
    """Closes the supervisor's copy of the port. When the front-ends close theirs, clients are refused at once."""


class Asker(NamedTuple):
    """The front-end that waits for the end of an order, and the ``order``'s number there."""

    front_end: int
    order: int


@dataclass(frozen=True)
class Wish:
    """The wishes of a load."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """The settings to change, by name."""
    other_classes: bool = False
    least_agreement: float = 0.0


@dataclass(frozen=True)
class Load(Action):
    """Checks whether the version of ``wish`` can be loaded. The event `load_possible` or `load_refused` follows.

    ``asker`` is None if no client waits for the load.
    """

    servable: Servable
    wish: Wish
    asker: Asker | None


@dataclass(frozen=True)
class Check(Action):
    """Runs known images through engines. The event `checked` follows, unless `EndCheck` comes before."""

    version: int
    wish: Wish
    new: Mapping[int, int]
    """The number of the supervisor's link for each engine of the new version."""
    old: tuple[int, int] | None
    """An engine of the version that answers, if there is one, and the number of the link."""
    taken: frozenset[str]
    """Names that the new model must not have."""


@dataclass(frozen=True)
class EndCheck(Action):
    """Ends the running check without a result."""


@dataclass(frozen=True)
class MeasureShadow(Action):
    """Checks whether there is memory for the shadow. The event `shadow_measured` follows."""

    settings: Settings


@dataclass(frozen=True)
class Log(Action):
    """Logs a line."""

    level: int
    line: str
