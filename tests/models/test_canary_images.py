"""The canaries' images: always the same pixels, and together they meet nearly every weight that a photo meets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.canary_images import Unseen, Uses, photos
from service.models import canary, loader
from service.models.checkpoints import resolve
from training.canary import CROPS, Mosaics

SHAPES = st.tuples(st.integers(1, 20), st.integers(1, 20))


@pytest.mark.parametrize(
    ("shape", "digest"), [((224, 224, 3), "371416b409522145"), ((64, 64, 3), "4e1b85b667a2612c")]
)
def test_the_pixels_are_those_whose_answers_lie_in_converted_models(
    shape: tuple[int, int, int], digest: str
) -> None:
    """A change makes every cached conversion anew, and leaves older int8 artifacts without the comparison."""
    assert canary.digest(shape) == digest
    images = canary.images(shape)
    assert images.shape == (canary.IMAGES, *shape)
    assert images.flags.c_contiguous
    assert len({image.tobytes() for image in images}) == canary.IMAGES
    images[:] = 0  # a copy
    assert canary.digest(shape) == digest


def test_the_sheet_is_what_its_crops_make() -> None:
    """Two levels of a colour apart at most: decoders of JPEG and resizing may round otherwise."""
    sheet = Mosaics().sheet(CROPS).astype(int)
    stored = np.vstack([np.hstack(list(canary.images((224, 224, 3))[two : two + 2])) for two in (0, 2)])
    assert sheet.shape == stored.shape
    assert (np.abs(sheet - stored) > 8).mean() < 0.01


@given(old=SHAPES, new=SHAPES, seed=st.integers(0, 99))
def test_resizing_takes_the_mean_of_each_area(old: tuple[int, int], new: tuple[int, int], seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (*old, 3), np.uint8)
    resized = canary.resized(pixels, *new)
    assert resized.shape == (*new, 3)
    assert np.abs(resized.mean((0, 1)) - pixels.mean((0, 1))).max() <= 0.5 + 1e-9
    whole = pixels.repeat(new[0], 0).repeat(new[1], 1)  # each new pixel is a whole number of these
    blocks = whole.reshape(new[0], old[0], new[1], old[1], 3).mean((1, 3))
    assert np.abs(resized - blocks).max() <= 0.5 + 1e-9
    assert (canary.resized(pixels, *old) == pixels).all()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small layers: on busy cores several threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_together_they_use_nearly_every_channel_and_weight_that_a_sample_uses() -> None:
    checkpoint = resolve("demo", "densenet121")
    uses = Uses(loader.load(checkpoint))
    unseen = Unseen(uses, list(canary.images(checkpoint.preprocessing.shape)))
    for photo in photos(checkpoint):
        unseen.add(uses.channels(photo), uses.weights(photo))
    assert unseen.channels <= 6  # of 12,873
    assert unseen.weights <= 0.001
