"""Labels by index: the built-in thousand and an operator's own file."""

from __future__ import annotations

from pathlib import Path

import pytest
from torchvision.models._meta import _IMAGENET_CATEGORIES

from service.errors import CheckpointError
from service.label_files import read_labels
from service.labels import ClassLabel, default_classes, imagenet_classes
from service.models import _torchvision as _torchvision


def test_the_thousand_are_torchvisions_with_their_wnids() -> None:
    classes = imagenet_classes()
    assert [entry.label for entry in classes] == _IMAGENET_CATEGORIES
    assert [entry.class_id for entry in classes] == list(range(1000))
    assert classes[285] == ClassLabel(285, "n02124075", "Egyptian cat")
    # ILSVRC's class order is that of the WordNet ids, and each is one class.
    wnids = [entry.wnid or "" for entry in classes]
    assert wnids == sorted(set(wnids))


def test_other_counts_get_plain_names() -> None:
    assert default_classes(1000) == imagenet_classes()
    assert default_classes(2) == (ClassLabel(0, None, "class 0"), ClassLabel(1, None, "class 1"))


def test_a_labels_file_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeffcat\r\ndog \r\nЁж\n\n".encode())
    assert [entry.label for entry in read_labels(path)] == ["cat", "dog", "Ёж"]


@pytest.mark.parametrize("content", [b"cat\n\ndog\n", b"\xff\xfe"])
def test_a_bad_labels_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"labels\.txt"):
        read_labels(path)


def test_a_missing_labels_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read_labels(tmp_path / "labels.txt")
