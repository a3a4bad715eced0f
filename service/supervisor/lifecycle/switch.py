"""The order of the steps in a change of a model's version: a pure state machine.

    making room ──▶ loading ──▶ checking ──▶ switched
         └─────────────┴────────────┴──────▶ failed, and nothing has changed

The old version answers until the moment of the switch; its engines may die and be replaced meanwhile.
"""

from __future__ import annotations

from enum import StrEnum


class Stage(StrEnum):
    """The stage of a switch."""

    MAKING_ROOM = "making room"
    LOADING = "loading"
    CHECKING = "checking"
    """The new engines are ready: front-ends join them, and known images are run."""
    SWITCHED = "switched"
    FAILED = "failed"


class SwitchStep(StrEnum):
    """The next step."""

    FREE = "free"
    """End the version that was kept for a rollback."""
    START = "start"
    CHECK = "check"
    SHOW = "show"
    """Let the new version answer from now on."""
    ABANDON = "abandon"
    """End the new engines."""


class Switch:
    """One switch. Each event returns the step that follows, or None. After its end no event has an effect."""

    def __init__(self, engines: int) -> None:
        """``engines`` is the number of new engines that must be ready."""
        self.stage = Stage.LOADING
        self.reason = ""
        """The reason of the failure; empty without one."""
        self._missing = engines
        self._joined = self._checked = False

    def __repr__(self) -> str:
        return f"<Switch {self.stage}>"

    @property
    def over(self) -> bool:
        return self.stage in (Stage.SWITCHED, Stage.FAILED)

    def begin(self, make_room: bool) -> SwitchStep:
        """Begins. ``make_room`` says that the kept version must end first, for its memory."""
        self.stage = Stage.MAKING_ROOM if make_room else Stage.LOADING
        return SwitchStep.FREE if make_room else SwitchStep.START

    def room_made(self) -> SwitchStep | None:
        """Begins to load, since the kept version has ended."""
        if self.stage is not Stage.MAKING_ROOM:
            return None
        self.stage = Stage.LOADING
        return SwitchStep.START

    def ready(self) -> SwitchStep | None:
        """Counts a new engine that is ready."""
        if self.stage is not Stage.LOADING:
            return None
        self._missing -= 1
        if self._missing:
            return None
        self.stage = Stage.CHECKING
        return SwitchStep.CHECK

    def joined(self, everyone: bool) -> SwitchStep | None:
        """Notes whether every front-end has joined all new engines."""
        self._joined = everyone
        return self._show()

    def checked(self, problem: str) -> SwitchStep | None:
        """Takes the result of the known images; ``problem`` is empty if the new version may answer."""
        if self.stage is not Stage.CHECKING:
            return None
        if problem:
            return self.fail(problem)
        self._checked = True
        return self._show()

    def fail(self, reason: str) -> SwitchStep | None:
        """Fails, since a new engine has ended or cannot start, or the service ends."""
        if self.over:
            return None
        self.stage, self.reason = Stage.FAILED, reason
        return SwitchStep.ABANDON

    def _show(self) -> SwitchStep | None:
        if self.stage is not Stage.CHECKING or not (self._joined and self._checked):
            return None
        self.stage = Stage.SWITCHED
        return SwitchStep.SHOW
