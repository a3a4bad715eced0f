"""Folders of labelled photographs, in the two layouts in which ImageNet is kept.

    ImageFolder     FOLDER/n02124075/cat.jpg ...                the sub-folder's name is the class
    flat            FOLDER/ILSVRC2012_val_00000001.JPEG ...     a ground-truth file says the class of each

A class is called by its WordNet id, its label, or its class_id; `Names` finds it among a model's classes. Three kinds
of ground-truth files are read, told apart by their content:

- ``ImageId,PredictionString`` with lines like ``ILSVRC2012_val_00000001,n01751748 23 42 61 80`` (Kaggle's
  ``LOC_val_solution.csv``);
- two columns, separated by a comma, a tab or spaces: the file's name, with or without its ending, and its class;
- one number a line (the development kit's ``ILSVRC2012_validation_ground_truth.txt``): line N is for photo N, and the
  number is an ILSVRC2012_ID. Those ids follow the kit's own order, not that of the logits, so reading them needs the
  kit's list of classes, ``map_clsloc.txt`` or ``meta.mat``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from service.errors import ConfigurationError
from service.labels import ClassLabel

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})

#: File names that are looked for in the folder and beside it, and in an unpacked development kit (`_KITS`) in either.
_GROUND_TRUTHS = (
    "LOC_val_solution.csv",
    "val_annotations.txt",
    "val.txt",
    "ILSVRC2012_validation_ground_truth.txt",
    "ILSVRC2015_clsloc_validation_ground_truth.txt",
)
_CLASS_LISTS = ("map_clsloc.txt", "meta.mat")
_KITS = (".", "ILSVRC2012_devkit_t12/data", "devkit/data")

#: The ILSVRC2012_IDs of the 1,000 classes; higher ids in the kit's list are their ancestors in WordNet.
_ILSVRC_IDS = range(1, 1001)
_NUMBER_OF_PHOTO = re.compile(r"ILSVRC20\d\d_val_(\d{8})$")
_WNID = re.compile(r"n\d{8}")


T = TypeVar("T")


@dataclass(frozen=True)
class Photo:
    """A labelled image; ``answer`` is its class as the data set spells it."""

    path: Path
    answer: str


def read(folder: Path, ground_truth: Path | None = None, class_list: Path | None = None) -> list[Photo]:
    """The photos of ``folder`` in the order of their paths.

    Raises `ConfigurationError` with one sentence when they or their classes cannot be found.
    """
    flat = sorted(path for path in folder.iterdir() if _is_image(path))
    truth = ground_truth or (_find(folder, _GROUND_TRUTHS) if flat else None)
    if truth is not None:
        return list(_flat(flat, truth, class_list))
    photos = list(_image_folder(folder))
    if photos:
        return photos
    if flat:
        raise ConfigurationError(
            f"the photos lie in '{folder.name}' itself and nothing says their classes: give a file that does with "
            "--ground-truth, or sort them into one sub-folder a class"
        )
    raise ConfigurationError(f"there are no photos in '{folder.name}' or its sub-folders")


def spread(photos: Sequence[T], limit: int | None) -> list[T]:
    """Returns at most ``limit`` of the photos, evenly spaced, so that photos sorted by class keep all classes."""
    if limit is None or limit >= len(photos):
        return list(photos)
    return [photos[index * len(photos) // limit] for index in range(limit)]


class Names:
    """Finds a model's class by the name that a data set gives it: WordNet id first, then label, then class_id."""

    def __init__(self, classes: Iterable[ClassLabel]) -> None:
        known = list(classes)
        self._wnids = {entry.wnid: entry.class_id for entry in known if entry.wnid}
        self._ids = {entry.class_id for entry in known}
        shared = Counter(_plain(entry.label) for entry in known)
        self._labels = {_plain(entry.label): entry.class_id for entry in known}
        self._ambiguous = {label for label, count in shared.items() if count > 1}

    def find(self, name: str) -> int | None:
        """The class_id, or None if the model has no such class. Raises `ConfigurationError` if two have the label."""
        if name in self._wnids:
            return self._wnids[name]
        if _plain(name) in self._ambiguous:
            raise ConfigurationError(
                f"'{name}' is the label of two of the model's classes; call them by WordNet id or class_id"
            )
        if _plain(name) in self._labels:
            return self._labels[_plain(name)]
        return int(name) if name.isdecimal() and int(name) in self._ids else None


def _plain(label: str) -> str:
    return label.replace("_", " ").casefold()


def images_below(folder: Path) -> list[Path]:
    """The image files in ``folder`` and its sub-folders, in the order of their paths."""
    return sorted(path for path in folder.rglob("*") if _is_image(path))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and path.is_file()


def _image_folder(folder: Path) -> Iterator[Photo]:
    for child in sorted(path for path in folder.iterdir() if path.is_dir()):
        yield from (Photo(path, child.name) for path in images_below(child))


def _flat(images: list[Path], ground_truth: Path, class_list: Path | None) -> Iterator[Photo]:
    if not images:
        raise ConfigurationError(
            "a ground-truth file is for photos that lie in the folder itself; there are none"
        )
    lines = [line.strip() for line in _text(ground_truth).splitlines() if line.strip()]
    if lines and all(line.isdecimal() for line in lines):
        answers = _numbered(images, lines, _class_list(ground_truth, class_list))
    else:
        answers = _named(images, lines)
    found = [Photo(path, answer) for path, answer in zip(images, answers, strict=True) if answer is not None]
    if not found:
        raise ConfigurationError(f"'{ground_truth.name}' names none of the photos in the folder")
    yield from found


def _named(images: list[Path], lines: list[str]) -> Iterator[str | None]:
    """Yields the class of each image by its file name; None if no line names it."""
    kaggle = bool(lines) and lines[0].replace(" ", "").startswith("ImageId,")
    classes = {}
    for line in lines:
        columns = [column.strip() for column in re.split(r"[,\t]", line)]
        name, answer = columns[:2] if len(columns) > 1 else [*line.split(maxsplit=1), ""][:2]
        classes[name] = answer.split()[0] if kaggle and answer else answer
    for path in images:
        yield classes.get(path.name) or classes.get(path.stem) or None


def _numbered(images: list[Path], lines: list[str], wnids: dict[int, str]) -> Iterator[str | None]:
    """Yields the class of each image by the number in its file name; None without a line of that number."""
    for path in images:
        match = _NUMBER_OF_PHOTO.fullmatch(path.stem)
        number = int(match[1]) if match else 0
        yield wnids.get(int(lines[number - 1])) if 1 <= number <= len(lines) else None


def _class_list(ground_truth: Path, given: Path | None) -> dict[int, str]:
    """Reads the mapping ILSVRC2012_ID → WordNet id of the development kit."""
    path = given or _find(ground_truth.parent, _CLASS_LISTS)
    if path is None:
        raise ConfigurationError(
            f"'{ground_truth.name}' numbers the classes in the development kit's own order: lay the kit's "
            "map_clsloc.txt or meta.mat beside it or name it with --class-list, or give Kaggle's "
            "LOC_val_solution.csv or a file of two columns (file name, WordNet id) with --ground-truth"
        )
    pairs = _from_mat(path) if path.suffix == ".mat" else _from_text(path)
    wnids = {number: wnid for number, wnid in pairs if number in _ILSVRC_IDS}
    if len(set(wnids.values())) != len(_ILSVRC_IDS):
        raise ConfigurationError(
            f"'{path.name}' is no list of the 1,000 classes: it wants an ILSVRC2012_ID and a WordNet id a line"
        )
    return wnids


def _from_text(path: Path) -> Iterator[tuple[int, str]]:
    """Reads lines such as ``n02119789 1 kit_fox`` or ``1,n02119789``."""
    for line in _text(path).splitlines():
        words = re.split(r"[\s,]+", line.strip())[:2]
        numbers = [word for word in words if word.isdecimal()]
        wnids = [word for word in words if _WNID.fullmatch(word)]
        if numbers and wnids:
            yield int(numbers[0]), wnids[0]


def _from_mat(path: Path) -> Iterator[tuple[int, str]]:
    """Reads the development kit's ``meta.mat``. SciPy, which reads MATLAB's format, is imported for it alone."""
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"reading '{path.name}' needs SciPy: pip install scipy, or name the kit's map_clsloc.txt with "
            "--class-list"
        ) from error
    try:
        synsets = loadmat(path, squeeze_me=True)["synsets"]
        for entry in synsets:
            yield int(entry["ILSVRC2012_ID"]), str(entry["WNID"])
    except (OSError, ValueError, KeyError, IndexError, TypeError, NotImplementedError) as error:
        raise ConfigurationError(f"'{path.name}' is not the development kit's list of classes") from error


def _find(folder: Path, names: Sequence[str]) -> Path | None:
    places = [parent / kit for parent in (folder, folder.parent) for kit in _KITS]
    return next((place / name for name in names for place in places if (place / name).is_file()), None)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"'{path.name}' cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"'{path.name}' is not UTF-8 text") from error
