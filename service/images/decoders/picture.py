"""One picture that is to fill a slot, and what is known of it afterwards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.images.decode import MAGIC_BYTES, Admit, Data, sniff
from service.images.jpegs import plain
from service.images.overlay import reduced
from service.preprocess import Preprocessing, prepare


@dataclass(frozen=True)
class Recipe:
    """The way in which every picture is prepared, for as long as one model is served."""

    preprocessing: Preprocessing
    max_pixels: int
    fast: bool
    files: bool = False
    """True if the engine may decode plain JPEGs itself, from the file."""


@dataclass(eq=False)
class Picture:
    """A picture's work: called with a slot's pixels, uint8 ``[H, W, 3]``, it fills them. Raises what `prepare` does."""

    data: Data
    recipe: Recipe
    drawn: bool = False
    """True if the answer shows the photo itself, too."""
    size: tuple[int, int] = (0, 0)
    """(height, width) of the whole upright photo; (0, 0) until it is known."""
    photo: Image.Image | None = None
    """The photo in RGB, with no side longer than `MAX_SIDE`, if ``drawn``."""

    def __call__(self, pixels: NDArray[np.uint8], admit: Admit | None = None) -> None:
        recipe = self.recipe
        image = prepare(
            self.data,
            recipe.preprocessing,
            pixels,
            max_pixels=recipe.max_pixels,
            fast=recipe.fast,
            admit=admit,
        )
        if image is not None:  # the `prepare` of some benchmarks does nothing
            self.size = (image.height, image.width)
            self.photo = reduced(image) if self.drawn else None

    def file(self) -> bytes | None:
        """Returns the file if the engine may decode it: a plain JPEG within the limits, and not drawn."""
        if not self.recipe.files or self.drawn:
            return None
        data = self.data if isinstance(self.data, bytes) else bytes(self.data)
        size = plain(data)
        if size is None or size[0] * size[1] > self.recipe.max_pixels:
            return None
        self.size = size
        return data

    @property
    def format(self) -> str:
        """The format that the first bytes announce, in lower case, for metrics; ``none`` if it is not accepted."""
        return (sniff(bytes(self.data[:MAGIC_BYTES])) or "none").lower()
