"""What this host is: processor, memory, quotas, NVIDIA driver. Reads /proc and cgroups, changes nothing."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import subprocess
from pathlib import Path

#: Extensions of the instruction set that decide how fast a model runs, by their name in /proc/cpuinfo.
_EXTENSIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimddp")
_CGROUP = Path("/sys/fs/cgroup")
#: cgroup v1 says "no limit" with the largest number of pages that there could be.
_NO_LIMIT = 2**60
#: Bytes, and the share of the cgroup's limit, that are not for pictures: bodies on their way, and what processes grow
#: by.
_RESERVE, _RESERVED_SHARE = 128 << 20, 0.1


def cpu_model() -> str:
    """With family and model number: hypervisors like to call all of them ``AMD EPYC``."""
    name = _cpuinfo("model name") or platform.processor() or platform.machine()
    family, model = _cpuinfo("cpu family"), _cpuinfo("model")
    return f"{name} (family {family} model {model})" if family else name


def cpu_extensions() -> list[str]:
    """Those of the processor's extensions that matter here, by their name in /proc/cpuinfo."""
    flags = set(_cpuinfo("flags", "Features").split())
    return [name for name in _EXTENSIONS if name in flags]


def cpu_flags() -> list[str]:
    """All extensions that /proc/cpuinfo names, sorted."""
    return sorted(_cpuinfo("flags", "Features").split())


#: Processes of this service that share the quota evenly; more than one in an engine with its part of the processor.
_sharers = 1


def share_quota(sharers: int) -> None:
    """For this process, `cpu_quota` is one part of as many from now on."""
    global _sharers  # what this process is, as its affinity
    _sharers = sharers


def cpu_quota(root: Path = _CGROUP) -> float | None:
    """Cores that the cgroup allows (``cpu.max`` of v2, ``cpu.cfs_quota_us`` of v1); None without a limit.

    Of a quota that is shared, this process's part.
    """
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu/cpu.cfs_period_us").read_text().strip()
        return None if quota in ("max", "-1") else int(quota) / int(period) / _sharers
    except (OSError, ValueError, ZeroDivisionError):
        return None


def memory_limit(root: Path = _CGROUP) -> int | None:
    """Bytes that this service may use at most: the cgroup's limit or the host's memory. None where unknown."""
    known = [_cgroup_memory_limit(root)]
    with contextlib.suppress(OSError, ValueError):
        known.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min((value for value in known if value is not None), default=None)


def free_memory(root: Path = _CGROUP) -> int | None:
    """Bytes that a new process could have: the host's, or what is left of the cgroup's limit. None where unknown."""
    left = [value for value in (_memory_available(), _cgroup_memory_left(root)) if value is not None]
    return min(left, default=None)


def memory_for_pictures(root: Path = _CGROUP) -> float:
    """Bytes that pictures may take while they are decoded: what is left now, when the model is warm, but for a reserve.

    Infinite where nothing says what there is.
    """
    left = free_memory(root)
    if left is None:
        return math.inf
    return max(0.0, left - max(_RESERVE, _RESERVED_SHARE * (_cgroup_memory_limit(root) or 0)))


def nvidia_driver() -> str | None:
    """The kernel's NVIDIA driver, as it describes itself; None where there is none."""
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0].removeprefix("NVRM version: ")
    except (OSError, IndexError):
        return None


def gpu() -> str | None:
    """Name and driver of the first NVIDIA GPU, from nvidia-smi; None without one."""
    query = output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    return query.splitlines()[0] if query else None


def output(*command: str, folder: Path | None = None) -> str:
    """What a command prints; empty when it is not there, fails, or takes half a minute."""
    try:
        finished = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return finished.stdout.strip() if finished.returncode == 0 else ""


def _cpuinfo(*names: str) -> str:
    """The first value of any of these fields in /proc/cpuinfo; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in names:
            return value.strip()
    return ""


def _memory_available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:  # macOS has no such file; what there is altogether is the next best
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None


def _cgroup_memory_limit(root: Path) -> int | None:
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            most = int((root / name).read_text())
            return None if most >= _NO_LIMIT else most
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return None


def _cgroup_memory_left(root: Path) -> int | None:
    limit = _cgroup_memory_limit(root)
    if limit is None:
        return None
    for used, statistics, idle in (
        ("memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        try:
            taken = int((root / used).read_text())
        except (OSError, ValueError):
            continue
        # What was read from files and is not needed goes first: the kubelet does not count it either.
        return max(0, limit - max(0, taken - _statistic(root / statistics, idle)))
    return None


def _statistic(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)
