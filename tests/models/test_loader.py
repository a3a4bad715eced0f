"""uint8 in, logits out: normalising to the bit, the twelve equal to torchvision's, the fixture's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision import models
from torchvision.transforms import functional as transforms

from service.models.checkpoints import resolve
from service.models.loader import load

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


def test_normalising_is_torchvisions_to_the_bit() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(2, -1, -1, 3)
    model = load(resolve(str(FIXTURES / "tv_densenet_old_keys/model.pth"), "densenet121"))
    preset = models.DenseNet121_Weights.IMAGENET1K_V1.transforms()
    scaled = transforms.convert_image_dtype(levels.permute(0, 3, 1, 2), torch.float)
    expected = transforms.normalize(scaled, mean=preset.mean, std=preset.std)
    assert torch.equal(model.normalise(levels), expected)


def test_the_model_equals_torchvisions() -> None:
    torch.manual_seed(1)
    original = models.densenet121().eval()
    pixels = torch.randint(0, 256, (2, 64, 80, 3), dtype=torch.uint8)
    model = load(resolve("random:1", "densenet121"))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    with torch.inference_mode():
        assert torch.equal(model(pixels), original(model.normalise(pixels)))


@pytest.mark.parametrize("size", [(32, 32), (45, 61)])
def test_features_are_the_last_blocks(size: tuple[int, int]) -> None:
    model = load(resolve(str(FIXTURES / "tv_densenet_old_keys/model.pth"), "densenet121"))
    with torch.inference_mode():
        features = model.forward_features(torch.zeros(1, *size, 3, dtype=torch.uint8))
    assert features.shape[:2] == (1, 36)
