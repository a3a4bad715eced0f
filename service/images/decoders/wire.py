"""Messages between a front-end and a decoder: numbers in datagrams, pictures and pixels in memory that both map.

memory    the picture's bytes, from 0 on  ·  the pixels  ·  the reduced photo, if it is drawn
order     number, bytes of the picture, bytes of memory that it may take, drawn or not; then the recipe as JSON, if it
          differs from the last one
reply     number, kind; then the sizes of photo and reduced photo, or the cost, or the error's words
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

from service.images.decoders.picture import Recipe
from service.images.overlay import MAX_SIDE
from service.preprocess import Preprocessing

ORDER = struct.Struct("@QQQB")
REPLY = struct.Struct("@QB")
SIZES = struct.Struct("@IIII")
NEEDED = struct.Struct("@Qd")
#: Most bytes of an order.
MAX_ORDER_BYTES = ORDER.size + 4096
#: Most bytes of an error's words, and of any reply.
MAX_WORDS_BYTES = 8000
MAX_REPLY_BYTES = REPLY.size + MAX_WORDS_BYTES

_PAGE = mmap.PAGESIZE


class ReplyKind(IntEnum):
    """Kind of a reply."""

    DONE = 0
    NEEDS = 1
    """Nothing was decoded: the picture needs more memory than it was allowed."""
    REFUSED = 2
    """An error of `service.errors`: its code, a line break, its words."""
    DEFECT = 3
    """A traceback, for the log."""


@dataclass(frozen=True)
class Layout:
    """Layout of a decoder's memory: ``room`` bytes for the picture, ``pixel_bytes`` for the prepared pixels."""

    room: int
    pixel_bytes: int

    @property
    def pixels(self) -> int:
        """Offset of the prepared pixels."""
        return -(-self.room // _PAGE) * _PAGE

    @property
    def photo(self) -> int:
        """Offset of the reduced photo."""
        return self.pixels + -(-self.pixel_bytes // _PAGE) * _PAGE

    @property
    def size(self) -> int:
        return self.photo + 3 * MAX_SIDE * MAX_SIDE


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    return {**asdict(recipe), "preprocessing": recipe.preprocessing.to_json()}


def pixel_bytes(recipe: Recipe) -> int:
    """Number of bytes of a prepared picture."""
    height, width, channels = recipe.preprocessing.shape
    return height * width * channels


def recipe_from_json(document: dict[str, Any]) -> Recipe:
    return Recipe(**{**document, "preprocessing": Preprocessing.from_json(document["preprocessing"])})
