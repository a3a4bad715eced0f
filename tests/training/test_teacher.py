from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from training import teacher
from training.data import Images, is_held_out
from training.forward_only import compiled, evaluated


def test_the_layer_learns_from_the_rows_not_held_out_and_answers_for_all() -> None:
    torch.manual_seed(0)
    targets = torch.arange(4000) % 4
    found = torch.randn(4000, 16) + 3 * torch.eye(4, 16)[targets]
    told = torch.where(is_held_out(4000), (targets + 1) % 4, targets)  # wrong labels where nobody may look
    logits = teacher.fitted(found, told, 4)
    assert logits.shape == (4000, 4)
    assert (logits.argmax(1) == targets).float().mean() > 0.9


def test_an_image_is_asked_about_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[nn.Module] = []

    class Network(nn.Module):
        def extract_features(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.mean(dim=(1, 2, 3), keepdim=True).expand(-1, 1280, 1, 1)

    def pretrained() -> nn.Module:
        asked.append(Network())
        return asked[-1]

    monkeypatch.setattr(teacher, "_pretrained", pretrained)
    brightness = torch.arange(120)
    images = Images(brightness.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 64, 64), brightness % 3)
    first, second = (teacher.answers(images, 3, tmp_path) for _ in range(2))
    assert len(asked) == 1
    assert torch.equal(first, second)
    assert first.shape == (120, 3)
    expected = (brightness[:, None].expand(-1, 1280) - 127) / 128
    torch.testing.assert_close(teacher.features(images), expected, atol=1e-4, rtol=1e-4)


def test_both_ways_to_run_forward_only_are_the_network_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    pixels = torch.randn(5, 3, 8, 8)
    network(pixels)  # its statistics are no longer the initial ones
    runs = [compiled(network, (3, 8, 8)), evaluated(network)]
    expected = network(pixels).detach()
    for run in runs:
        torch.testing.assert_close(run(pixels), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(runs[0](pixels[:2]), expected[:2], atol=1e-5, rtol=1e-5)
