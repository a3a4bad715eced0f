"""A model of ten of ImageNet's classes that does tell pictures apart, and folders of pictures to judge it by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from service.classifier import Classifier
from service.classifier.local import LocalClassifier
from service.labels import imagenet_classes
from service.models import loader
from service.models.checkpoints import write
from service.preprocess import prepare
from service.settings import Settings
from tests import tiny
from tests.uploads import encoded

#: class_ids as a model of some of ImageNet's classes has them: not their places in the logits.
CLASS_IDS = (1, 25, 281, 285, 291, 508, 817, 963, 967, 970)
CLASSES = tuple(imagenet_classes()[class_id] for class_id in CLASS_IDS)


def picture(seed: int) -> bytes:
    """Two colours with an edge between, as a PNG."""
    rng = np.random.default_rng(seed)
    pixels = np.tile(rng.integers(0, 256, 3, np.uint8), (30, 40, 1))
    pixels[rng.integers(5, 25) :, rng.integers(5, 35) :] = rng.integers(0, 256, 3, np.uint8)
    return encoded(Image.fromarray(pixels))


def weights(parent: Path) -> Path:
    """The tiny network under these classes, its head balanced so that it does not always say the same."""
    checkpoint = tiny.checkpoint()
    pixels = np.empty((40, *checkpoint.preprocessing.shape), np.uint8)
    for seed, row in enumerate(pixels):
        prepare(picture(seed), checkpoint.preprocessing, row, max_pixels=10**6)
    with torch.inference_mode():
        logits = loader.load(checkpoint)(torch.from_numpy(pixels))
    state = dict(checkpoint.state_dict)
    spread = logits.std(0)
    state["classifier.weight"] = state["classifier.weight"] / spread[:, None]
    state["classifier.bias"] = (state["classifier.bias"] - logits.mean(0)) / spread
    path = parent / "balanced"
    write(replace(checkpoint, state_dict=state, classes=CLASSES, name="balanced"), path)
    return path


def local(path: Path, batch: int = 4) -> LocalClassifier:
    return LocalClassifier(Settings(weights=str(path), max_batch_size=batch))


def predicted(classifier: Classifier, seeds: range) -> list[list[int]]:
    """For each picture the class_ids that are named, best first."""
    results = classifier.classify(picture(seed) for seed in seeds)
    return [[entry["class_id"] for entry in seen.predictions] for seen in results]
