"""The outputs that a request can ask of the model. Front-ends and engines share it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class OutputKind(IntEnum):
    """The kind of result that a slot receives, in float32."""

    CLASSIFY = 0
    """Logits ``[classes]``."""
    FEATURES_AVG = 1
    """The last block's output, averaged over its positions, ``[C]``."""
    FEATURES_MAX = 2
    """The last block's output, its maximum over the positions, ``[C]``."""
    FEATURES_MAP = 3
    """The last block's whole output, ``[C, h, w]`` in C order."""


@dataclass(frozen=True, slots=True)
class Explain:
    """Logits ``[classes]``, followed by each position's contribution to one class, ``[h, w]`` in C order."""

    class_index: int | None = None
    """An index of the logits; None means the largest logit, of equal ones the first."""


OutputRequest = OutputKind | Explain

#: The kinds by number: the enumeration's own look-up would cost more than all else that is done for a slot.
_KINDS = tuple(OutputKind)


def to_code(wanted: OutputRequest) -> int:
    """``wanted`` as a signed 32-bit number for a slot's record; those of `Explain` are negative."""
    if isinstance(wanted, OutputKind):
        return wanted
    return -1 if wanted.class_index is None else -2 - wanted.class_index


def from_code(code: int) -> OutputRequest:
    """The inverse of `to_code`."""
    if code >= 0:
        return _KINDS[code]
    return Explain(None if code == -1 else -2 - code)
