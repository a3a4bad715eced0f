"""The counters' files: those of the dead become one, and a folder that outlives its service is never full."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.observability import counters, metrics
from service.observability.readings import Readings
from service.observability.snapshot import Snapshot

NAMESPACES = ["unshare", "--user", "--map-root-user", "--mount"]


def can_mount() -> bool:
    try:
        done = subprocess.run(
            [*NAMESPACES, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False
        )
    except FileNotFoundError:
        return False
    return done.returncode == 0


@pytest.mark.slow
def test_a_killed_service_starts_again_five_times_on_a_small_file_system() -> None:
    if not can_mount():
        pytest.skip("this host lets nobody mount a file system")
    done = subprocess.run(
        [*NAMESPACES, sys.executable, "-m", "tests.observability.small_disk"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # One folder, that of the last one: each start removed what it found.
    assert done.stdout.count("left: ['imagenet-serve-metrics-']") == 5, done.stdout


#: What a front-end does that dies: it counts, and its file is there when it is gone.
DIES = """
import sys
from service.observability.metrics import Metrics
declared = Metrics.declare()
declared.requests.labels("/predict", "200").inc(3)
declared.request_duration.labels("/predict").observe(0.02)
declared.rejected.labels(sys.argv[1]).inc()
"""


def scraped() -> dict[str, float]:
    snapshot = Snapshot("ready", 0, 0, True, Readings(), [])
    text = metrics.exposition(snapshot)[0].decode()
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def test_what_the_dead_have_counted_stays_and_their_files_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    for death in range(3):
        process = subprocess.Popen([sys.executable, "-c", DIES, f"reason{death}"])
        assert process.wait() == 0
        before = scraped()
        with counters.reading(tmp_path):
            metrics.forget(process.pid)  # somebody scrapes: it stays as it is
        assert (tmp_path / f"counter_{process.pid}.db").exists()
        metrics.forget(process.pid)
        metrics.forget(process.pid)  # once more changes nothing
        assert scraped() == before
        assert sorted(os.listdir(tmp_path)) == ["counter_dead.db", "histogram_dead.db"]
    assert before['imagenet_requests_total{route="/predict",status="200"}'] == 9
    assert before['imagenet_request_duration_seconds_bucket{le="0.025",route="/predict"}'] == 3
    assert before['imagenet_rejected_total{reason="reason0"}'] == 1
