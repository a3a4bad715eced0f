"""Folders of services that were killed, and of those that live."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from service.host import leftovers
from service.observability import metrics
from tests.server import Server


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def folders(tmp_path: Path) -> set[str]:
    return {folder.name for folder in tmp_path.glob("imagenet-serve-metrics-*")}


@pytest.mark.slow
def test_the_counters_of_a_killed_service_go_at_the_next_start_and_others_stay(tmp_path: Path) -> None:
    quick: dict[str, Any] = {"module": "tests.drills.hostile", "frontends": 1}
    with Server(**quick) as lives:
        living = folders(tmp_path)
        with Server(**quick) as killed:
            os.kill(killed.pid, signal.SIGKILL)
            killed.wait()
            (left,) = folders(tmp_path) - living
            with Server(**quick) as third:
                assert left not in folders(tmp_path)
                assert living < folders(tmp_path)
                assert third.metrics()
                assert third.terminate() == 0
            assert folders(tmp_path) == living
        assert lives.metrics()["imagenet_engine_up"] == 1


def test_what_is_just_being_made_or_nobody_says_whose_it_is_stays(tmp_path: Path) -> None:
    newborn, old, strange = (tmp_path / f"mine-{name}" for name in ("newborn", "old", "strange"))
    for folder in (newborn, old, strange):
        folder.mkdir()
    (strange / "counter_1.db").write_bytes(b"x")
    for folder in (old, strange):
        os.utime(folder, (0, 0))
    claimed = tmp_path / "mine-claimed"
    claimed.mkdir()
    claim = leftovers.Claim(claimed)
    (tmp_path / "yours-old").mkdir()
    os.utime(tmp_path / "yours-old", (0, 0))
    leftovers.remove("mine-")
    assert {path.name for path in tmp_path.iterdir()} == {
        "mine-newborn",
        "mine-strange",
        "mine-claimed",
        "yours-old",
    }
    claim.close()
    leftovers.remove("mine-")
    assert not claimed.exists()


def test_a_folder_is_nobodys_prey_while_it_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine-new"
    folder.mkdir()
    lock = fcntl.flock

    def slowly(descriptor: int, how: int) -> None:
        """Another start looks round right before the lock is taken, and right after."""
        monkeypatch.setattr(fcntl, "flock", lock)
        leftovers.remove("mine-")
        lock(descriptor, how)
        leftovers.remove("mine-")

    monkeypatch.setattr(fcntl, "flock", slowly)
    claim = leftovers.Claim(folder)
    assert folder.exists()
    leftovers.remove("mine-")
    assert folder.exists()
    claim.close()
    leftovers.remove("mine-")
    assert not folder.exists()


def test_a_supervisor_survives_who_cleans_temporary_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "gone"))
    metrics.forget(7)
    assert (tmp_path / "gone").is_dir()


def test_a_folder_that_cannot_be_removed_stops_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", os.environ["PROMETHEUS_MULTIPROC_DIR"])
    dead = tmp_path / "imagenet-serve-metrics-dead"
    dead.mkdir()
    leftovers.Claim(dead).close()
    (tmp_path / "imagenet-serve-metrics-file").write_text("no folder at all")

    def refuse(folder: Path) -> None:
        raise PermissionError(13, "not yours")

    monkeypatch.setattr("shutil.rmtree", refuse)
    made = metrics.prepare()
    assert made.is_dir()
    assert dead.is_dir()
