"""What the engines take of the memory that all of them together may take (memory_budget_mib)."""

from __future__ import annotations

import logging

from service.supervisor.pool import room
from service.supervisor.pool.engines import Engines

log = logging.getLogger(__name__)


class Budget:
    """Part of the `Pool`. ``mib`` None is no limit. Nothing is ever ended to make room."""

    def __init__(self, pool: Engines, mib: int | None) -> None:
        self._pool = pool
        self._mib = mib

    def left(self) -> int | None:
        """Bytes that engines may take beside those that there are; None without a budget."""
        if self._mib is None or not self._pool.host.processes:
            return None
        return (self._mib << 20) - sum(self._taken().values())

    def _taken(self) -> dict[str, int]:
        """Bytes by engine."""
        return {
            f"{seat.name} ({version.settings.model})": room.resident(seat.child.pid)
            for _, version, seat in self._pool
            if seat.child is not None
        }

    def is_over(self) -> bool:
        """Whether the engines take more than they may; the first start ends then."""
        left = self.left()
        if left is None or left >= 0:
            return False
        each = ", ".join(f"{name} {size >> 20} MiB" for name, size in self._taken().items())
        message = f"the engines take {-left >> 20} MiB more than memory_budget_mib={self._mib}: {each}"
        log.error("%s", message)
        if self._pool.was_ready:
            return False
        self._pool.host.enter("failed", message)
        self._pool.host.give_up()
        return True
