"""What can be asked of the model about an image. Both sides of the arena read it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class OutputKind(IntEnum):
    """What the result of a slot should be, in float32."""

    CLASSIFY = 0
    """Logits ``[classes]``."""
    FEATURES_AVG = 1
    """The last block's output, averaged over its positions, ``[C]``."""
    FEATURES_MAX = 2
    """Its largest value over the positions, ``[C]``."""
    FEATURES_MAP = 3
    """All of it, ``[C, h, w]`` in C order."""


@dataclass(frozen=True, slots=True)
class Explain:
    """Logits ``[classes]``, and after them what each position says for one class, ``[h, w]`` in C order."""

    class_index: int | None = None
    """An index of the logits; None for the largest of them, the first where several are."""


OutputRequest = OutputKind | Explain

#: By number: an enumeration's own look-up takes longer than the rest of what a slot costs.
_KINDS = tuple(OutputKind)


def to_code(wanted: OutputRequest) -> int:
    """``wanted`` as one number of 32 bits, for a slot's record: a map's are negative."""
    if isinstance(wanted, OutputKind):
        return wanted
    return -1 if wanted.class_index is None else -2 - wanted.class_index


def from_code(code: int) -> OutputRequest:
    """What `to_code` made a number of."""
    if code >= 0:
        return _KINDS[code]
    return Explain(None if code == -1 else -2 - code)
