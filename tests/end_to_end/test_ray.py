"""The example for Ray on a real Ray of this machine, row by row against `classify`: ``make test-ray``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = sorted((ROOT / "samples").glob("*.jpg"))


@pytest.mark.ray
def test_a_folder_becomes_parquet_with_every_row(tmp_path: Path) -> None:
    import pyarrow.parquet

    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for copy in range(20):
        for path in SAMPLES:
            shutil.copy(path, photos / f"{copy:02}-{path.name}")
    (photos / "damaged.jpg").write_bytes(SAMPLES[0].read_bytes()[:1000])
    command = [sys.executable, "-P", str(ROOT / "deploy/batch/classify_folder.py"), str(photos), str(out)]
    subprocess.run([*command, "--weights", "demo", "--top-k", "3"], check=True, cwd=ROOT, env=_environment())
    rows = {row["path"]: row for row in pyarrow.parquet.read_table(out).to_pylist()}
    classify = [sys.executable, "-m", "service", "classify", str(photos), "--weights", "demo", "--top-k", "3"]
    done = subprocess.run([*classify, "--format", "json"], capture_output=True, text=True, cwd=ROOT)
    printed = {document["file"]: document for document in json.loads(done.stdout)}
    assert rows.keys() == printed.keys()
    assert len(rows) == 20 * len(SAMPLES) + 1
    for name, row in rows.items():
        wanted = printed[name]
        assert row["error"] == wanted.get("error", ""), name
        assert row["labels"] == [entry["label"] for entry in wanted.get("predictions", [])], name
        assert row["probabilities"] == pytest.approx(
            [entry["probability"] for entry in wanted.get("predictions", [])], abs=1e-5
        ), name


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
