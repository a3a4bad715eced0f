"""A change of a model's version that is under way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from service.settings import Settings
from service.supervisor.lifecycle.actions import Load
from service.supervisor.lifecycle.switch import Switch
from service.supervisor.lifecycle.versions import Version, called


@dataclass(eq=False)
class Change:
    """``switch`` says how far it is; the rest is what people are told, and what is done with it."""

    load: Load
    version: Version
    switch: Switch
    began: float
    moved: float
    """When it last got on."""
    detail: str = ""
    progress: Mapping[str, int | None] | None = None
    found: Mapping[str, Any] = field(default_factory=dict)
    """What there is to tell of the known images."""

    def to_json(self) -> dict[str, Any]:
        """For people."""
        return describe(self.switch.stage, self.version.settings, self.detail, self.progress)


def describe(
    stage: str, settings: Settings, detail: str, progress: Mapping[str, int | None] | None = None
) -> dict[str, Any]:
    """A change, of whose ``settings`` clients may read some, for people."""
    return {
        "stage": stage,
        "model": settings.model,
        "weights": called(settings.weights),
        "detail": detail,
        "progress": progress,
    }
