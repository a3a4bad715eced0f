"""The estimate whether the memory suffices for one more engine, made before anything is started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.errors import ConfigurationError
from service.models.catalog import VARIANTS

_MIB = 1 << 20
#: Bytes that must stay free beside a new engine.
RESERVE = 64 * _MIB


def needed(taken: int, old: int | None, new: int | None) -> int:
    """The bytes for an engine with ``new`` parameters, if one with ``old`` parameters has ``taken`` so many.

    The estimate is too high rather than too low: it scales all memory with the parameters, and never below ``taken``.
    None means an unknown number of parameters.
    """
    if not old or not new:
        return taken
    return int(taken * max(1.0, new / old))


def check_budget(variants: Sequence[str], budget_mib: int | None) -> None:
    """Raises `ConfigurationError` if the budget is too small even for the parameters of all ``variants``."""
    known = {name: 4 * VARIANTS[name].parameters for name in variants}
    least = sum(4 * VARIANTS[name].parameters for name in variants)
    if budget_mib is not None and len(variants) > 1 and least > budget_mib * _MIB:
        each = ", ".join(f"{name} {size / _MIB:.0f} MiB" for name, size in known.items())
        raise ConfigurationError(
            f"memory_budget_mib={budget_mib} has no room for the parameters of all models alone: {each}"
        )


def parameters_of(variant: str) -> int | None:
    """The number of parameters of one of the twelve variants; None for any other name."""
    return VARIANTS[variant].parameters if variant in VARIANTS else None


@dataclass(frozen=True)
class Room:
    """The memory in bytes: ``free`` now (None: unknown), and ``kept`` by a version that could end for the new one."""

    free: int | None
    kept: int = 0
    budget: int | None = None
    """The rest of the budget of all engines; None without a budget."""


@dataclass(frozen=True)
class Decision:
    """The decision: ``refusal`` is empty if there is room; ``make_room`` says that the kept version must end first."""

    refusal: str = ""
    make_room: bool = False


def decide(need: int, room: Room) -> Decision:
    """Decides whether ``need`` more bytes fit into ``room``."""
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
