"""Pictures for tests, made when they are needed."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image


def noise(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """An RGB picture that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """``image`` as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(seed: int, width: int = 40, height: int = 30) -> bytes:
    return encoded(noise(seed, width, height))
