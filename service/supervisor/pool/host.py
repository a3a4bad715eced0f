"""What the engines' side of the supervisor wants of the rest of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from service.shared.status import State, Status
from service.shared.transport import Channel
from service.supervisor.child import Child

Heard = Callable[[Child, dict[str, Any], list[int]], None]


class Host(Protocol):
    """What the pool wants of the supervisor."""

    status: Status
    front_ends: list[Child]
    processes: bool
    """Whether parts are processes, which can be killed and replaced."""

    def spawn(self, name: str, main: Callable[[Channel], None]) -> Child: ...
    def watch(self, child: Child, spoke: Heard, ended: Callable[[Child], None]) -> None: ...
    def forget(self, child: Child) -> None: ...
    def listen_to(self, descriptor: int, callback: Callable[[], None]) -> None: ...
    def stop_listening_to(self, descriptor: int) -> None: ...
    def kill(self, child: Child, sentence: str) -> None: ...

    def enter(self, state: State, detail: str) -> None:
        """The service is in another state, unless it drains."""

    def tell(self) -> None:
        """Every front-end hears of the status."""

    def came_ready(self) -> None:
        """All models are served."""

    @property
    def over(self) -> bool:
        """Whether the service is about to end, so that nothing is started any more."""

    def give_up(self) -> None:
        """The service ends now, with exit code 1."""

    def end_after_answers(self) -> None:
        """The same after whoever waits has been told."""

    def engines_ended(self, lost: bool) -> None:
        """During a drain: an engine has gone. ``lost`` says that somebody may have waited for it."""
