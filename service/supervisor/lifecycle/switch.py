"""One change of a model's version: what has to come before what, decided without a clock or a process.

    making room ──▶ loading ──▶ checking ──▶ switched
         └─────────────┴────────────┴──────▶ failed, and nothing has changed

The old version goes on until the moment of the switch, whatever becomes of its engines meanwhile.
"""

from __future__ import annotations

from enum import StrEnum


class Stage(StrEnum):
    """How far a switch is."""

    MAKING_ROOM = "making room"
    LOADING = "loading"
    CHECKING = "checking"
    """The new engines are ready: front-ends join them, and known images are run."""
    SWITCHED = "switched"
    FAILED = "failed"


class Action(StrEnum):
    """What is to be done next."""

    FREE = "free"
    """End the version that was kept for a rollback."""
    START = "start"
    CHECK = "check"
    SHOW = "show"
    """Let the new version answer from now on."""
    ABANDON = "abandon"
    """End the new engines."""


class Switch:
    """Each event returns what is to be done because of it, if anything. After its end, nothing happens any more."""

    def __init__(self, engines: int) -> None:
        """``engines`` is on how many devices the new version has to be ready."""
        self.stage = Stage.LOADING
        self.reason = ""
        """Why it failed."""
        self._missing = engines
        self._joined = self._checked = False

    def __repr__(self) -> str:
        return f"<Switch {self.stage}>"

    @property
    def over(self) -> bool:
        return self.stage in (Stage.SWITCHED, Stage.FAILED)

    def begin(self, make_room: bool) -> Action:
        """``make_room``: there is not enough memory while another version is kept."""
        self.stage = Stage.MAKING_ROOM if make_room else Stage.LOADING
        return Action.FREE if make_room else Action.START

    def room_made(self) -> Action | None:
        """The kept version has ended."""
        if self.stage is not Stage.MAKING_ROOM:
            return None
        self.stage = Stage.LOADING
        return Action.START

    def ready(self) -> Action | None:
        """One more of the new engines is."""
        if self.stage is not Stage.LOADING:
            return None
        self._missing -= 1
        if self._missing:
            return None
        self.stage = Stage.CHECKING
        return Action.CHECK

    def joined(self, everyone: bool) -> Action | None:
        """Whether every front-end there is has joined all the new engines."""
        self._joined = everyone
        return self._show()

    def checked(self, problem: str) -> Action | None:
        """The known images have been run; ``problem`` is empty where the answers will do."""
        if self.stage is not Stage.CHECKING:
            return None
        if problem:
            return self.fail(problem)
        self._checked = True
        return self._show()

    def fail(self, reason: str) -> Action | None:
        """A new engine has ended, or has said why it cannot start, or the service ends."""
        if self.over:
            return None
        self.stage, self.reason = Stage.FAILED, reason
        return Action.ABANDON

    def _show(self) -> Action | None:
        if self.stage is not Stage.CHECKING or not (self._joined and self._checked):
            return None
        self.stage = Stage.SWITCHED
        return Action.SHOW
