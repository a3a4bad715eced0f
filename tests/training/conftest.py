"""A data set of three classes and a network that trains on it in milliseconds."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from service.models.configuration import DenseNetConfig
from training.data import Images
from training.recipe import Recipe, Stage

#: Three of ImageNet's, deliberately not in its order: banana, Egyptian cat, espresso.
WNIDS = ("n07753592", "n02124075", "n07920052")

NETWORK = DenseNetConfig(
    blocks=(1, 1), growth_rate=4, stem_width=8, bottleneck=2, stem_kernel=3, stem_pool=False, num_classes=3
)

RECIPE = Recipe(stages=(Stage(2, 16, 0.5), Stage(1, 24, 0.5)), batch_size=8)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Tiny-ImageNet's layout, each class of one colour: four images for training, two for validation."""
    file = tmp_path / "images.zip"
    with zipfile.ZipFile(file, "w") as content:
        content.writestr("README.txt", "not an image")
        for split, count in (("train", 4), ("val", 2)):
            for brightness, wnid in enumerate(WNIDS):
                for number in range(count):
                    content.writestr(f"{split}/{wnid}/{wnid}_{number}.webp", _webp(80 * brightness + number))
    return file


def _webp(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (value, value, value)).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


@pytest.fixture
def images() -> Images:
    """32 images of noise, brighter where the class is higher."""
    generator = np.random.default_rng(0)
    targets = np.arange(32) % 3
    pixels = generator.integers(0, 100, (32, 3, 64, 64)) + 70 * targets[:, None, None, None]
    return Images(torch.from_numpy(pixels.astype(np.uint8)), torch.from_numpy(targets))
