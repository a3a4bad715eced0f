"""What crosses between a front-end and a decoder: numbers in datagrams, pictures and pixels in memory that both map.

memory    the picture's bytes, from 0 on  ·  the pixels  ·  the reduced photo, if it is wanted
order     number, length of the picture, bytes of memory that it may take, whether the photo is wanted; then how it is
          prepared, as JSON, where that is another way than the last time
reply     number, what it is; then the sizes of both results, or what it would cost, or the error's words
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

from service.images.decoders.picture import Recipe
from service.images.overlay import LONGEST
from service.preprocess import Preprocessing

ORDER = struct.Struct("@QQQB")
REPLY = struct.Struct("@QB")
SIZES = struct.Struct("@IIII")
NEEDED = struct.Struct("@Qd")
#: Bytes of an order.
LONGEST_ORDER = ORDER.size + 4096
#: Bytes of an error's words, and of any reply.
LONGEST_WORDS = 8000
LONGEST_REPLY = REPLY.size + LONGEST_WORDS

_PAGE = mmap.PAGESIZE


class Kind(IntEnum):
    """Of a reply."""

    DONE = 0
    NEEDS = 1
    """Nothing was decoded: it takes more memory than it was allowed."""
    REFUSED = 2
    """One of our errors: its code, a line's end, its words."""
    DEFECT = 3
    """A traceback, for the log."""


@dataclass(frozen=True)
class Layout:
    """A decoder's memory. ``room`` is the bytes of the largest picture, ``pixel_bytes`` those of prepared pixels."""

    room: int
    pixel_bytes: int

    @property
    def pixels(self) -> int:
        """Where they begin."""
        return -(-self.room // _PAGE) * _PAGE

    @property
    def photo(self) -> int:
        """Where it begins."""
        return self.pixels + -(-self.pixel_bytes // _PAGE) * _PAGE

    @property
    def size(self) -> int:
        return self.photo + 3 * LONGEST * LONGEST


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    return {**asdict(recipe), "preprocessing": recipe.preprocessing.to_json()}


def pixel_bytes(recipe: Recipe) -> int:
    """What the pixels of a prepared picture take."""
    height, width, channels = recipe.preprocessing.shape
    return height * width * channels


def recipe_from_json(document: dict[str, Any]) -> Recipe:
    return Recipe(**{**document, "preprocessing": Preprocessing.from_json(document["preprocessing"])})
