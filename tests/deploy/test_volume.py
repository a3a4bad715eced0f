"""Several pods on one volume, as their init containers and services see it: processes on one folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.models.loopback import Loopback, serve
from tests.models.test_kaggle import HANDLE, kaggle
from tests.test_counters import NAMESPACES, can_mount

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
FETCH = [sys.executable, str(ROOT / "deploy" / "fetch_weights.py")]
PODS = 4


def environment(volume: Path, server: Loopback | None) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HOME": str(volume / "home"),
        "KAGGLEHUB_CACHE": str(volume / "kagglehub"),
        "XDG_CACHE_HOME": str(volume / "cache"),
        "KAGGLE_API_ENDPOINT": server.url if server else "http://127.0.0.1:9",
        "IMAGENET_WEIGHTS": f"{HANDLE}/3",
    }


def start(volume: Path, server: Loopback | None, *before: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*before, *FETCH], env=environment(volume, server), stderr=subprocess.PIPE, text=True
    )


def test_pods_that_start_together_fetch_each_file_once_and_a_read_only_volume_serves(tmp_path: Path) -> None:
    with serve(kaggle) as server:
        pods = [start(tmp_path, server) for _ in range(PODS)]
        said = [pod.communicate()[1] for pod in pods]
        assert [pod.returncode for pod in pods] == [0] * PODS, said
        asked = Counter(path.rpartition("/")[2] for path in server.paths)
    assert len({line for text in said for line in text.splitlines() if "SHA-256" in line}) == 1
    assert asked["model.weights.h5"] <= PODS  # once, unless one came a moment after it was there
    leftovers = [path.name for path in tmp_path.rglob("*.partial*")]
    assert leftovers == []
    if can_mount():
        read_only = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
        pod = start(tmp_path, None, *NAMESPACES, "sh", "-c", read_only, str(tmp_path))
        text = pod.communicate()[1]
        assert pod.returncode == 0, text
        assert "SHA-256" in text


def test_a_volume_that_cannot_be_written_and_lacks_them_is_one_sentence(tmp_path: Path) -> None:
    if not can_mount():
        pytest.skip("this host lets nobody mount a file system")
    read_only = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    with serve(kaggle) as server:
        pod = start(tmp_path, server, *NAMESPACES, "sh", "-c", read_only, str(tmp_path))
        text = pod.communicate()[1]
    assert pod.returncode == 1
    assert "Read-only file system" in text
    assert "Traceback" not in text
