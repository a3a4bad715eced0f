"""Checkpoints of networks so small that serving them costs nothing."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import nn

from service.labels import ClassLabel
from service.models import building, densenet
from service.models.checkpoints import Checkpoint, write
from service.models.configuration import Configuration, DenseNetConfig
from service.models.network import build
from service.preprocess import Preprocessing
from service.settings import load

CLASSES = 10
SIDE = 32


def checkpoint() -> Checkpoint:
    """A DenseNet of a few thousand parameters; the same numbers every time."""
    configuration = DenseNetConfig((2, 2), growth_rate=8, stem_width=8, num_classes=CLASSES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        network = densenet.build(configuration)
        torch.nn.init.normal_(network.get_parameter("classifier.weight"), 0, 2)
    return Checkpoint(
        configuration=configuration,
        state_dict=network.state_dict(),
        preprocessing=Preprocessing(resize=36, crop=(SIDE, SIDE)),
        classes=tuple(ClassLabel(index, None, f"thing {index}") for index in range(CLASSES)),
        activation="softmax",
        name="tiny",
        source="made by a test",
        sha256=None,
    )


def of(configuration: Configuration, side: int) -> Checkpoint:
    """`checkpoint` with another network, for images of ``side`` pixels each way; norms and logits are no trifles."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = build(configuration)
        for module in network.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.3)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
                nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return replace(
        checkpoint(),
        configuration=configuration,
        state_dict=network.state_dict(),
        preprocessing=Preprocessing(resize=side, crop=(side, side)),
    )


def directory(parent: Path) -> Path:
    """Writes it under ``parent``; the folder's path is what ``--weights`` takes."""
    path = parent / "tiny"
    write(checkpoint(), path)
    return path


@cache
def shared() -> Path:
    """`directory`, the same one for all tests that only serve it: one of their services converts it for all."""
    with _alone():
        return _SHARED / "tiny" if (_SHARED / "tiny").exists() else directory(_SHARED)


@cache
def demo() -> Path:
    """The model that comes along, converted once for all tests that only serve it: a start needs no torch."""
    path = _SHARED / "demo"
    with _alone():
        if not path.exists():
            building.export(load(weights="demo"), path)
    return path


@contextmanager
def _alone() -> Iterator[None]:
    """xdist's workers share the folder."""
    _SHARED.mkdir(exist_ok=True)
    with (_SHARED / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


#: In the tests' own cache, as it is before a test takes another one for itself; it goes with it.
_SHARED = Path(os.environ.get("XDG_CACHE_HOME", tempfile.gettempdir())) / "weights"
