"""The version of each model that answers: one word of shared memory for each model, written by the supervisor alone.

Every front-end reads it when a request arrives, so all of them change to another version at the same moment.
"""

from __future__ import annotations

import mmap
import struct

_WORD = struct.Struct("@Q")


class Board:
    """Memory shared with forked processes. Models are numbered from 0, versions from 1; version 0 means none yet."""

    #: The number of places; the last one is the shadow's.
    size = mmap.PAGESIZE // _WORD.size
    shadow = size - 1

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)

    def __repr__(self) -> str:
        return f"<Board {[version for place in range(self.size) if (version := self.version(place))]}>"

    def version(self, model: int) -> int:
        """The version of the model number ``model`` that answers now."""
        (version,) = _WORD.unpack_from(self._memory, model * _WORD.size)
        return int(version)

    @property
    def models(self) -> int:
        """The number of models."""
        return next((place for place in range(self.size) if not self.version(place)), self.size)

    def show(self, model: int, version: int) -> None:
        """Lets ``version`` answer from now on. An aligned word is written atomically."""
        _WORD.pack_into(self._memory, model * _WORD.size, version)
