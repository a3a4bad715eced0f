"""Several pods on one volume, as their init containers and services see it: processes on one folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.models.loopback import Loopback, Reply, Request, serve
from tests.models.test_download import until
from tests.models.test_kaggle import FIXTURES, HANDLE, kaggle
from tests.observability.test_counters import NAMESPACES, can_mount
from tests.server import HTTP, Server

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


def test_a_service_that_is_ended_while_weights_load_goes_on_where_it_was(tmp_path: Path) -> None:
    """Three starts on a network that is too slow for any of them; one file, and the fourth has it all."""
    held: list[Path] = []
    data = (FIXTURES / "khub_densenet_g8" / "model.weights.h5").read_bytes()
    step = len(data) // 4

    def slow(request: Request) -> Reply:
        if not request.path.endswith("model.weights.h5"):
            return kaggle(request)
        start = int(request.headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        headers = {"ETag": '"one"', "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        return Reply(206 if start else 200, data[start:], headers, cut=step, hang=True)

    def partials() -> list[Path]:
        return [path for path in tmp_path.rglob("*.partial") if "weights" in path.name]

    with serve(slow) as server:
        settings: dict[str, Any] = {
            "frontends": 1,
            "device": "cpu",
            "runtime": "eager",
            "weights": f"{HANDLE}/3",
        }
        for starts in (1, 2, 3):
            with Server(wait=False, environment=environment(tmp_path, server), **settings) as service:
                until(lambda: any(path.stat().st_size >= starts * step for path in partials()))  # noqa: B023
                assert HTTP.get(service.url + "/livez").status_code == 200
                assert HTTP.get(service.url + "/healthz").json()["state"] == "loading"
                service.terminate()
            held = partials()
            assert len(held) == 1
        server.answer = lambda request: replace(slow(request), cut=None, hang=False)
        with Server(environment=environment(tmp_path, server), **settings) as service:
            assert HTTP.get(service.url + "/readyz").status_code == 200
        assert partials() == []
