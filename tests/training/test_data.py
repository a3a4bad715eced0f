from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from tests.training.conftest import WNIDS
from training import data


def test_classes_are_in_imagenets_order_whatever_the_archives(archive: Path) -> None:
    assert data.class_order(archive) == ("n02124075", "n07753592", "n07920052")


def test_a_class_that_imagenet_does_not_know_is_refused(archive: Path) -> None:
    with zipfile.ZipFile(archive, "a") as content:
        content.writestr("train/n00000001/n00000001_0.webp", b"")
    with pytest.raises(ValueError, match="n00000001"):
        data.class_order(archive)


def test_pixels_and_targets_stay_together(archive: Path, tmp_path: Path) -> None:
    classes = data.class_order(archive)
    images = data.load(archive, "train", classes, tmp_path / "cache")
    assert images.pixels.shape == (12, 3, 64, 64)
    assert images.pixels.dtype == torch.uint8
    for pixels, target in zip(images.pixels, images.targets.tolist(), strict=True):
        assert int(pixels.max()) // 80 == WNIDS.index(classes[target])


def test_the_second_load_reads_the_cache(archive: Path, tmp_path: Path) -> None:
    classes = data.class_order(archive)
    first = data.load(archive, "val", classes, tmp_path / "cache")
    archive.unlink()
    second = data.load(archive, "val", classes, tmp_path / "cache")
    assert torch.equal(first.pixels, second.pixels)
    assert torch.equal(first.targets, second.targets)


def test_a_cache_of_other_classes_is_not_taken_for_this_one(archive: Path, tmp_path: Path) -> None:
    data.load(archive, "val", WNIDS, tmp_path / "cache")
    with pytest.raises(ValueError, match="other classes"):
        data.load(archive, "val", tuple(reversed(WNIDS)), tmp_path / "cache")


def test_held_out_images_are_ten_of_each_class_and_no_others_are_missing() -> None:
    targets = torch.arange(3).repeat_interleave(500)
    pixels = torch.arange(1500).view(-1, 1, 1, 1)
    everything = data.Images(pixels, targets)
    held_out, rest = everything.part(held_out=True), everything.part(held_out=False)
    assert held_out.targets.bincount().tolist() == [10, 10, 10]
    rows = torch.cat([held_out.pixels, rest.pixels]).flatten()
    assert sorted(rows.tolist()) == list(range(1500))
    assert torch.equal(held_out.targets, held_out.pixels.flatten() // 500)
