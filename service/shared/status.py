"""The state of the service in words. The supervisor decides it, everyone else has a copy."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

State = Literal["starting", "loading", "warming", "ready", "draining", "failed"]


@dataclass
class Status:
    """``phases`` is how long each finished phase of the last start took, in seconds."""

    state: State = "starting"
    detail: str = ""
    phases: dict[str, float] = field(default_factory=dict)
    progress: dict[str, int | None] | None = None
    """A download's bytes ``done`` and ``total``, while there is one."""
    restarts: int = 0
    """How often the engine was started again."""
    frontend_restarts: int = 0
    """How often a front-end was."""
    engines: list[dict[str, Any]] = field(default_factory=list)
    """Each engine: its model, version, role, device and state."""
    switch: dict[str, Any] | None = None
    """The change of a model's version that is under way, or how the last one ended."""
    shadow: dict[str, Any] | None = None
    """What the shadow has been seen to do; None without one."""
    switches: dict[str, int] = field(default_factory=dict)
    """How many ended, by outcome."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Status:
        return cls(**document)
