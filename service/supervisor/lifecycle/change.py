"""A running change of a model's version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from service.settings import Settings
from service.supervisor.lifecycle.actions import Load
from service.supervisor.lifecycle.switch import Switch
from service.supervisor.lifecycle.versions import ModelVersion, called


@dataclass(eq=False)
class Change:
    """A change: ``switch`` has its stage, the other fields its details. Times are seconds."""

    load: Load
    version: ModelVersion
    switch: Switch
    began: float
    moved: float
    """The time of its last progress."""
    detail: str = ""
    progress: Mapping[str, int | None] | None = None
    found: Mapping[str, Any] = field(default_factory=dict)
    """The result of the known images."""

    def to_json(self) -> dict[str, Any]:
        """The change as ``/healthz`` shows it."""
        return describe(self.switch.stage, self.version.settings, self.detail, self.progress)


def describe(
    stage: str, settings: Settings, detail: str, progress: Mapping[str, int | None] | None = None
) -> dict[str, Any]:
    """A change as ``/healthz`` shows it, without those of its ``settings`` that are not for clients."""
    return {
        "stage": stage,
        "model": settings.model,
        "weights": called(settings.weights),
        "detail": detail,
        "progress": progress,
    }
