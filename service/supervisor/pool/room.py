"""Whether there is memory for one more engine: an estimate, made before anything is started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from service.errors import ConfigurationError
from service.host.usage import resident_bytes
from service.models.catalog import VARIANTS

_MIB = 1 << 20
#: Bytes that stay free beside a new engine, for everybody else.
RESERVE = 64 * _MIB


def resident(pid: int) -> int:
    """Bytes that a process holds, what it shares counted in part; 0 where nothing tells."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return resident_bytes(pid)


def needed(taken: int, old: int | None, new: int | None) -> int:
    """Bytes for an engine with ``new`` parameters, from what one with ``old`` has ``taken``. None is not known.

    What does not depend on the parameters counts as if it did: rather too much than too little.
    """
    if not old or not new:
        return taken
    return int(taken * max(1.0, new / old))


def check_budget(variants: Sequence[str], budget_mib: int | None) -> None:
    """Raises `ConfigurationError` where not even the numbers of all ``variants`` would fit, before any is loaded."""
    known = {name: 4 * VARIANTS[name].parameters for name in variants}
    least = sum(4 * VARIANTS[name].parameters for name in variants)
    if budget_mib is not None and len(variants) > 1 and least > budget_mib * _MIB:
        each = ", ".join(f"{name} {size / _MIB:.0f} MiB" for name, size in known.items())
        raise ConfigurationError(
            f"memory_budget_mib={budget_mib} has no room for the parameters of all models alone: {each}"
        )


def parameters_of(variant: str) -> int | None:
    """Of one of the twelve."""
    return VARIANTS[variant].parameters if variant in VARIANTS else None


@dataclass(frozen=True)
class Room:
    """Bytes: ``free`` now, ``kept`` by the version that would end for the new one. None and 0 where not known."""

    free: int | None
    kept: int = 0
    budget: int | None = None
    """What all engines together may take, less what they do; None without a limit."""


@dataclass(frozen=True)
class Decision:
    """``refusal`` is empty where there is room; ``make_room`` says that the kept version has to go first."""

    refusal: str = ""
    make_room: bool = False


def decide(need: int, room: Room) -> Decision:
    """For ``need`` bytes more."""
    for left, name in ((room.budget, "memory_budget_mib"), (_less(room.free), "the memory that is free")):
        if left is not None and need > left + room.kept:
            return Decision(
                f"the new model needs about {need / _MIB:.0f} MiB while the old one serves, and {name} leaves "
                f"{max(0, left + room.kept) / _MIB:.0f} MiB; nothing was changed"
            )
    tight = any(left is not None and need > left for left in (room.budget, _less(room.free)))
    return Decision(make_room=tight and room.kept > 0)


def _less(free: int | None) -> int | None:
    return None if free is None else free - RESERVE
