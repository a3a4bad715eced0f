"""The parts that run beside the supervisor, as far as its decisions need to know them."""

from __future__ import annotations

from dataclasses import dataclass, field

from service.engine.arena import MAX_FRONTENDS

#: Seconds after an introduction in which a front-end joins an engine, and how often it has to say that it has not.
_UNJOINED, _UNJOINED_BEATS = 5.0, 3


@dataclass(eq=False)
class Part:
    """One process or thread. ``number`` is its own for ever; the ``name`` passes on to its successor."""

    number: int
    name: str
    began_at: float
    heard_at: float = field(init=False)
    """When it last said anything."""
    killed_because: str = ""
    """Why the supervisor has killed it, in the words that end "the engine …"."""

    def __post_init__(self) -> None:
        self.heard_at = self.began_at


@dataclass(eq=False)
class FrontEnd(Part):
    """One that speaks HTTP."""

    introduced_at: float = field(init=False)
    """When it was last told of an engine."""
    joined: set[int] = field(default_factory=set)
    """The numbers of the engines that it has said it is joined to."""
    unjoined: int = 0
    """How often it has said since its last introduction that it is not joined to an engine that takes work."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.introduced_at = self.began_at

    def is_lost(self, engines: set[int], now: float) -> bool:
        """Takes note of one report. True when it will not join ``engines`` any more: another would do better."""
        if engines <= self.joined:
            self.unjoined = 0
            return False
        self.unjoined += 1
        return self.unjoined >= _UNJOINED_BEATS and now - self.introduced_at > _UNJOINED


@dataclass(eq=False)
class Engine(Part):
    """One that runs a model."""

    ready_at: float | None = None
    """When it was ready; None while it loads."""
    trusted: bool = True
    """Whether nothing has been heard that makes it end soon."""
    distrust: str = ""
    """What it has said of its device, if it has."""
    names: dict[str, str] = field(default_factory=dict)
    """What its ``model`` and its ``weights`` are called, as soon as it is ready."""
    _links: dict[str, int] = field(default_factory=dict)
    """By name of the front-end: the number of the link."""
    _last_link: int = 0

    @property
    def serves(self) -> bool:
        """Whether it takes work."""
        return self.ready_at is not None and self.trusted

    def new_link(self, name: str) -> int:
        """The number under which the engine is going to know the front-end ``name``.

        It is the next one, so that the engine is done with whoever had it, and none that another front-end has.
        """
        taken = {number for other, number in self._links.items() if other != name}
        while True:
            self._last_link = self._last_link % MAX_FRONTENDS + 1
            if self._last_link not in taken:
                self._links[name] = self._last_link
                return self._last_link
