"""The parts that run beside the supervisor, with the data that its decisions need."""

from __future__ import annotations

from dataclasses import dataclass, field

from service.engine.arena import MAX_FRONTENDS

#: A front-end is lost if it reports so often, and so many seconds after its last link, that an engine is missing.
_UNJOINED, _UNJOINED_BEATS = 5.0, 3


@dataclass(eq=False)
class Part:
    """One process or thread. Its ``number`` is unique; its ``name`` passes on to its successor."""

    number: int
    name: str
    began_at: float
    last_message_at: float = field(init=False)
    """The time of its last message."""
    killed_because: str = ""
    """The reason why the supervisor killed it, as the end of a sentence that begins with its name."""

    def __post_init__(self) -> None:
        self.last_message_at = self.began_at


@dataclass(eq=False)
class FrontEnd(Part):
    """A front-end."""

    linked_at: float = field(init=False)
    """The time of its last new link."""
    joined: set[int] = field(default_factory=set)
    """The numbers of the engines that it has reported as joined."""
    unjoined: int = 0
    """The number of reports since its last new link in which a ready engine was missing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.linked_at = self.began_at

    def is_lost(self, engines: set[int], now: float) -> bool:
        """Counts one report. True if it will not join all ``engines`` any more and should be replaced."""
        if engines <= self.joined:
            self.unjoined = 0
            return False
        self.unjoined += 1
        return self.unjoined >= _UNJOINED_BEATS and now - self.linked_at > _UNJOINED


@dataclass(eq=False)
class Engine(Part):
    """An engine."""

    ready_at: float | None = None
    """The time at which it became ready; None while it loads."""
    trusted: bool = True
    """False once its device failed or its model hangs, so that it ends soon."""
    distrust: str = ""
    """The reason why its device is not trusted; usually empty."""
    names: dict[str, str] = field(default_factory=dict)
    """The names of its ``model`` and its ``weights``; empty before it is ready."""
    _links: dict[str, int] = field(default_factory=dict)
    """The number of the link by the front-end's name."""
    _last_link: int = 0

    @property
    def serves(self) -> bool:
        """True if it takes work."""
        return self.ready_at is not None and self.trusted

    def new_link(self, name: str) -> int:
        """A new number in the engine's arena for the front-end ``name``, round-robin.

        A freed number is reused last, since the engine may still hold its slots. Other front-ends' numbers are skipped.
        """
        taken = {number for other, number in self._links.items() if other != name}
        while True:
            self._last_link = self._last_link % MAX_FRONTENDS + 1
            if self._last_link not in taken:
                self._links[name] = self._last_link
                return self._last_link
