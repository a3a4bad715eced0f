"""Which version of each model answers: a word of shared memory for each, written by the supervisor alone.

Every front-end reads it when a request arrives, so that all of them change to another version at one moment.
"""

from __future__ import annotations

import mmap
import struct

_WORD = struct.Struct("@Q")


class Board:
    """Memory that forked processes share with this one. Models are counted from 0, versions from 1; 0 is none yet."""

    #: Models that there is room for; the last place is the shadow's.
    most = mmap.PAGESIZE // _WORD.size
    shadow = most - 1

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)

    def __repr__(self) -> str:
        return f"<Board {[version for place in range(self.most) if (version := self.version(place))]}>"

    def version(self, model: int) -> int:
        """The version of ``model`` that answers now."""
        (version,) = _WORD.unpack_from(self._memory, model * _WORD.size)
        return int(version)

    @property
    def models(self) -> int:
        """How many there are."""
        return next((place for place in range(self.most) if not self.version(place)), self.most)

    def show(self, model: int, version: int) -> None:
        """Lets ``version`` answer from this moment on: an aligned word is written in one go."""
        _WORD.pack_into(self._memory, model * _WORD.size, version)
