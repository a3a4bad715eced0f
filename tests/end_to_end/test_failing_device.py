"""A device that fails under the running service: said at once, in words, and followed by another engine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.processes import ServerProcess, free_port
from benchmarks.serve import scrape
from tests.server import HTTP
from tests.uploads import png


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("fault", "says", "mismatches"),
    [("lost", "illegal memory access", 0), ("wrong", "wrong answers to the canary", 2)],
)
def test_a_failed_device_is_not_ready_says_why_and_comes_back(
    fault: str, says: str, mismatches: int, tmp_path: Path
) -> None:
    port, folder = free_port(), tmp_path / "faults"
    folder.mkdir()
    command = [sys.executable, "-m", "tests.failing", "serve", f"--port={port}", "--frontends=1"]
    environment = {**os.environ, "FAILING": str(folder)}
    with ServerProcess(command, port, folder=Path(__file__).parents[2], environment=environment) as server:
        assert HTTP.post(server.url + "/predict", files={"file": png(1)}).status_code == 200
        (folder / fault).touch()
        until(lambda: HTTP.get(server.url + "/readyz").status_code == 503)
        until(lambda: "started again" in HTTP.get(server.url + "/healthz").text)
        health = HTTP.get(server.url + "/healthz").json()
        assert health["state"] == "failed"
        assert says in health["detail"]
        assert HTTP.get(server.url + "/livez").status_code == 200
        (folder / fault).unlink()
        until(lambda: HTTP.get(server.url + "/readyz").status_code == 200)
        until(lambda: 'imagenet_gpu_memory_bytes{kind="used"}' in scrape(server.url))
        found = scrape(server.url)
        assert found["imagenet_canary_mismatch_total"] == mismatches
        assert found["imagenet_canary_checks_total"] > 0
        assert found["imagenet_padding_rows_total"] == 0
        assert found["imagenet_engine_restarts_total"] == 1
        assert found['imagenet_gpu_memory_bytes{kind="used"}'] == 30
        assert found['imagenet_batch_duration_seconds_count{bucket="1"}'] >= 1


def test_a_device_that_fails_at_the_start_is_tried_with_less(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "faults").write_text("2")
    command = [sys.executable, "-m", "tests.failing", "serve", f"--port={port}", "--frontends=1"]
    environment = {**os.environ, "FAILING": str(tmp_path)}
    with ServerProcess(command, port, folder=Path(__file__).parents[2], environment=environment) as server:
        assert HTTP.post(server.url + "/predict", files={"file": png(1)}).status_code == 200
        told = HTTP.get(server.url + "/model").json()["fallbacks"]
        assert told == [{"what": f"way {n}", "why": f"CUDA error number {n}"} for n in range(2)]
        found = scrape(server.url)
        assert found['imagenet_fallback_info{what="way 1",why="CUDA error number 1"}'] == 1
        assert found["imagenet_engine_restarts_total"] == 2


def test_a_device_that_fails_with_everything_ends_the_service(tmp_path: Path) -> None:
    (tmp_path / "faults").write_text("99")
    done = subprocess.run(
        [sys.executable, "-m", "tests.failing", "serve", "--port=0", "--frontends=1"],
        env={**os.environ, "FAILING": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "giving up" in done.stderr
    assert [f"CUDA error number {n}" in done.stderr for n in range(5)] == [True] * 4 + [False]
