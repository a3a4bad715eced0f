"""Classes: the names of the indices of the logits.

ImageNet's 1,000 classes come from two text files with a line for each class, in the order of the logits:
``imagenet_classes.txt`` holds torchvision's category names (``torchvision.models._meta``), ``imagenet_wnids.txt`` the
WordNet ids of the ILSVRC-2012 classes. Two classes may share a name ("crane", "maillot"); their indices and WordNet ids
differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from service.errors import CheckpointError

_HERE = Path(__file__).resolve().parent

#: The folder of the files in an installed wheel, and in a checkout.
_FOLDERS = (_HERE / "_labels", _HERE.parent / "labels")


@dataclass(frozen=True)
class ClassLabel:
    """One class: its index in the logits, its WordNet id if it has one, and its name."""

    class_id: int
    wnid: str | None
    label: str


@cache
def imagenet_classes() -> tuple[ClassLabel, ...]:
    """The 1,000 ImageNet classes in the order of the logits."""
    names = _data_file("imagenet_classes.txt").read_text("utf-8").splitlines()
    wnids = _data_file("imagenet_wnids.txt").read_text("utf-8").splitlines()
    return tuple(
        ClassLabel(class_id, wnid, label)
        for class_id, (wnid, label) in enumerate(zip(wnids, names, strict=True))
    )


def named_classes(names: list[str]) -> tuple[ClassLabel, ...]:
    """Classes with these names, in this order, without WordNet ids."""
    return tuple(ClassLabel(class_id, None, name) for class_id, name in enumerate(names))


def default_classes(count: int) -> tuple[ClassLabel, ...]:
    """ImageNet's classes for a head of 1,000; ``class 0``, ``class 1``, ... for any other."""
    imagenet = imagenet_classes()
    if count == len(imagenet):
        return imagenet
    return named_classes([f"class {class_id}" for class_id in range(count)])


def _data_file(name: str) -> Path:
    for folder in _FOLDERS:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"the installation lacks its data file '{name}'; install imagenet-serve again")
