"""The state of the service. The supervisor decides it; all other processes have a copy."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["starting", "loading", "warming", "ready", "draining", "failed"]


@dataclass
class Status:
    """The state and its details. ``phases`` are the seconds of each finished phase of the last start."""

    state: State = "starting"
    detail: str = ""
    phases: dict[str, float] = field(default_factory=dict)
    progress: dict[str, int | None] | None = None
    """The bytes ``done`` and ``total`` of a running download; None without one."""
    restarts: int = 0
    """The number of engines that replaced a dead one."""
    frontend_restarts: int = 0
    """The number of front-ends that replaced a dead one."""
    engines: list[dict[str, Any]] = field(default_factory=list)
    """The model, version, role, device and state of each engine."""
    switch: dict[str, Any] | None = None
    """The present change of a model's version, or the outcome of the last one."""
    shadow: dict[str, Any] | None = None
    """The comparison with the shadow model (`shadow_tally`); None without one."""
    switches: dict[str, int] = field(default_factory=dict)
    """The number of ended changes of a version, by outcome."""

    def to_json(self) -> dict[str, Any]:
        return {name: copy(value) for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Status:
        return cls(**document)
