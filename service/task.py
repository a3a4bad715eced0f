"""What can be asked of the model about an image. Both sides of the arena read it."""

from __future__ import annotations

from enum import IntEnum


class Task(IntEnum):
    """What the result of a slot should be, in float32."""

    CLASSIFY = 0
    """Logits ``[classes]``."""
    FEATURES_AVG = 1
    """The last block's output, averaged over its positions, ``[C]``."""
    FEATURES_MAX = 2
    """Its largest value over the positions, ``[C]``."""
    FEATURES_MAP = 3
    """All of it, ``[C, h, w]`` in C order."""
