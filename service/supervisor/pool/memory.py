"""The memory that engines take, and the decision whether there is enough for another one."""

from __future__ import annotations

from collections.abc import Mapping

from service.host.machine import free_memory
from service.host.usage import memory_bytes
from service.settings import Settings
from service.supervisor.child import Child
from service.supervisor.lifecycle.state import State
from service.supervisor.lifecycle.versions import Servable
from service.supervisor.pool import room


class EngineMemory:
    """Measures the processes of ``children``. ``mib`` is the budget of all engines together; None means no limit.

    To make room, only a version that is kept for a rollback may be ended.
    """

    def __init__(self, state: State, children: Mapping[int, Child], mib: int | None) -> None:
        self._state = state
        self._children = children
        self._mib = mib

    def over_budget(self) -> str:
        """The error message if the engines exceed the budget; else empty."""
        left = self._left()
        if left is None or left >= 0:
            return ""
        each = ", ".join(f"{name} {size >> 20} MiB" for name, size in self._taken().items())
        return f"the engines take {-left >> 20} MiB more than memory_budget_mib={self._mib}: {each}"

    def room_for(self, servable: Servable, settings: Settings) -> room.Decision:
        """Decides whether a model with these settings fits beside the present ones.

        The need is estimated from the engines of ``servable``.
        """
        current = servable.current
        taken = [self._resident(seat.engine.number) for seat in current.serving if seat.engine]
        if not taken or not self._state.processes:
            return room.Decision()
        old, new = (room.parameters_of(name) for name in (current.settings.model, settings.model))
        kept = servable.kept.seats if servable.kept is not None else []
        there = room.Room(
            free_memory(),
            sum(self._resident(seat.engine.number) for seat in kept if seat.engine),
            self._left(),
        )
        return room.decide(room.needed(max(taken), old, new) * len(current.seats), there)

    def _left(self) -> int | None:
        """The bytes that are left of the budget; None without one."""
        if self._mib is None or not self._state.processes:
            return None
        return (self._mib << 20) - sum(self._taken().values())

    def _taken(self) -> dict[str, int]:
        """The bytes of each engine."""
        return {
            f"{seat.name} ({version.settings.model})": self._resident(number)
            for number, (_, version, seat) in self._state.engines.items()
        }

    def _resident(self, engine: int) -> int:
        return memory_bytes(self._children[engine].pid) if engine in self._children else 0
