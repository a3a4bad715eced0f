"""Weights that change on disk."""

from __future__ import annotations

from typing import Any

import pytest

from service.supervisor.pool.watch import SignatureWatch, signature_of


def test_weights_that_are_being_written_are_not_loaded(tmp_path: Any) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"1")
    watch = SignatureWatch(signature_of(str(folder)))
    assert not watch.changed(signature_of(str(folder)))
    for size in range(2, 6):
        (folder / "model.bin").write_bytes(b"1" * size)
        assert not watch.changed(signature_of(str(folder))), "it grows"
    assert watch.changed(signature_of(str(folder)))
    assert not watch.changed(signature_of(str(folder))), "once for each change"
    (folder / "model.bin").unlink()
    folder.rmdir()
    for _ in range(3):
        assert not watch.changed(signature_of(str(folder))), "there is nothing to load"
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.bin").write_bytes(b"1" * 5)
    folder.symlink_to(other)  # how volumes change in one go
    assert not watch.changed(signature_of(str(folder)))
    assert watch.changed(signature_of(str(folder)))


@pytest.mark.parametrize("weights", ["pretrained", "random:3", "hf://owner/repo", "/nowhere/at/all"])
def test_weights_that_are_no_files_never_change(weights: str) -> None:
    watch = SignatureWatch(signature_of(weights))
    assert not any(watch.changed(signature_of(weights)) for _ in range(3))
