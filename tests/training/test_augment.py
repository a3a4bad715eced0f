from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from service.preprocess import IMAGENET_MEAN, IMAGENET_STD, prepare
from training.augment import Crop, normalise, random_crops, resize
from training.export import preprocessing


def _noise(number: int = 6) -> torch.Tensor:
    return torch.randint(
        0, 256, (number, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def _crops(pixels: torch.Tensor, side: int, seed: int, crop: Crop | None = None) -> torch.Tensor:
    return random_crops(pixels, side, crop or Crop(), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("side", [32, 48, 64])
def test_crops_have_the_size_asked_for_and_the_range_of_pixels(side: int) -> None:
    crops = _crops(_noise(), side, seed=1)
    assert crops.shape == (6, 3, side, side)
    assert crops.dtype == torch.float32
    assert crops.min() >= 0
    assert crops.max() <= 255


def test_a_seed_gives_the_same_crops_and_another_seed_others() -> None:
    assert torch.equal(_crops(_noise(), 32, seed=1), _crops(_noise(), 32, seed=1))
    assert not torch.equal(_crops(_noise(), 32, seed=1), _crops(_noise(), 32, seed=2))


def test_a_crop_of_everything_is_the_image_or_its_mirror() -> None:
    pixels = _noise(16)
    crops = _crops(pixels, 64, seed=3, crop=Crop(area=(1.0, 1.0), ratio=(1.0, 1.0)))
    kept = [_alike(crop, image) for crop, image in zip(crops, pixels, strict=True)]
    turned = [_alike(crop, image.flip(-1)) for crop, image in zip(crops, pixels, strict=True)]
    assert [not mirrored for mirrored in turned] == kept
    assert 0 < sum(kept) < 16


def _alike(crop: torch.Tensor, image: torch.Tensor) -> bool:
    return torch.allclose(crop, image.float(), atol=0.02)


def test_every_image_has_its_own_crop() -> None:
    same = _noise(1).expand(8, -1, -1, -1)
    assert len(torch.unique(_crops(same, 32, seed=4), dim=0)) == 8


def test_resize_is_pillows_up_to_its_rounding() -> None:
    pixels = _noise(1)
    image = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    expected = np.asarray(image.resize((48, 48), Image.Resampling.BILINEAR), np.float32)
    assert np.abs(resize(pixels, 48)[0].permute(1, 2, 0).numpy() - expected).max() < 1.5


def test_what_is_judged_is_what_the_services_preprocessing_shows() -> None:
    pixels = _noise(1)
    out = np.empty((64, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).save(buffer, "PNG")
    prepare(buffer.getvalue(), preprocessing(), out, max_pixels=50_000_000)
    assert np.abs(resize(pixels, 64)[0].permute(1, 2, 0).numpy() - out).max() < 1.5


def test_normalise_is_to_tensor_then_normalize() -> None:
    pixels = _noise(1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(normalise(pixels)[0], (pixels[0].float() / 255 - mean) / std)
