"""What the host says of itself, read from files that a test writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from service import settings
from service.host import machine as host


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "50000 100000"}, 0.5),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_a_container_s_quota_counts_not_the_host_s_cores(
    tmp_path: Path, files: dict[str, str], cores: float | None
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert host.cpu_quota(tmp_path) == cores


def test_half_a_core_is_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "cpu_quota", lambda: 0.5)
    assert settings.available_cores() == 1


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"memory.max": "3000", "memory.current": "1000"}, 2000),
        ({"memory.max": "1000", "memory.current": "3000"}, 0),
        ({"memory/memory.limit_in_bytes": "500", "memory/memory.usage_in_bytes": "100"}, 400),
    ],
)
def test_the_container_s_limit_counts_not_the_host_s_memory(
    tmp_path: Path, files: dict[str, str], left: int
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert host.free_memory(tmp_path) == left


def test_what_pictures_may_take_leaves_a_reserve_and_does_not_count_idle_files(tmp_path: Path) -> None:
    mebibyte = 1 << 20
    (tmp_path / "memory.max").write_text(str(2048 * mebibyte))
    (tmp_path / "memory.current").write_text(str(900 * mebibyte))
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {100 * mebibyte}\nactive_file 7\n")
    assert host.memory_for_pictures(tmp_path) == 2048 * mebibyte * 0.9 - 800 * mebibyte
    (tmp_path / "memory.max").write_text(str(850 * mebibyte))
    assert host.memory_for_pictures(tmp_path) == 0.0  # less is left than the reserve


def test_no_limit_means_the_host_s_memory(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max")
    free = host.free_memory(tmp_path)
    assert free is not None
    assert free > 2**27
