"""This host's processor, memory, quotas and NVIDIA driver, read from /proc and cgroups."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import subprocess
from pathlib import Path

#: Extensions of the instruction set that decide the speed of a model, by their names in /proc/cpuinfo.
_EXTENSIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimddp")
_CGROUP = Path("/sys/fs/cgroup")
#: A limit of cgroup v1 above this means no limit: it then shows the largest possible number of pages.
_NO_LIMIT = 2**60
#: Memory that is not for pictures but for request bodies and the growth of processes: bytes, and a share of the
#: cgroup's limit. The larger of the two counts.
_RESERVE, _RESERVED_SHARE = 128 << 20, 0.1


def cpu_model() -> str:
    """The processor's name with family and model number, since many hypervisors give the same name to all."""
    name = _cpuinfo("model name") or platform.processor() or platform.machine()
    family, model = _cpuinfo("cpu family"), _cpuinfo("model")
    return f"{name} (family {family} model {model})" if family else name


def cpu_extensions() -> list[str]:
    """The processor's extensions among `_EXTENSIONS`."""
    flags = set(_cpuinfo("flags", "Features").split())
    return [name for name in _EXTENSIONS if name in flags]


def cpu_flags() -> list[str]:
    """All extensions in /proc/cpuinfo, sorted."""
    return sorted(_cpuinfo("flags", "Features").split())


#: The number of engines that share the quota evenly.
_sharers = 1


def share_quota(sharers: int) -> None:
    """Makes `cpu_quota` in this process one of ``sharers`` equal parts."""
    global _sharers  # a property of the process, like its CPU affinity
    _sharers = sharers


def cpu_quota(root: Path = _CGROUP) -> float | None:
    """The cores that the cgroup allows (``cpu.max`` of v2, ``cpu.cfs_quota_us`` of v1); None without a limit.

    After `share_quota` it is this process's part.
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
    """The bytes that this service may use at most: the cgroup's limit or the host's memory; None if unknown."""
    known = [_cgroup_memory_limit(root)]
    with contextlib.suppress(OSError, ValueError):
        known.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min((value for value in known if value is not None), default=None)


def free_memory(root: Path = _CGROUP) -> int | None:
    """The free bytes of the host or, if less, of the cgroup's limit; None if unknown."""
    left = [value for value in (_memory_available(), _cgroup_memory_left(root)) if value is not None]
    return min(left, default=None)


def memory_for_pictures(root: Path = _CGROUP) -> float:
    """The bytes for decoded pictures: the memory that is free now, less a reserve. Infinite if unknown.

    To be called when the model is warm, so that its memory is no longer free.
    """
    left = free_memory(root)
    if left is None:
        return math.inf
    return max(0.0, left - max(_RESERVE, _RESERVED_SHARE * (_cgroup_memory_limit(root) or 0)))


def nvidia_driver() -> str | None:
    """The version line of the kernel's NVIDIA driver; None without one."""
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0].removeprefix("NVRM version: ")
    except (OSError, IndexError):
        return None


def gpu() -> str | None:
    """The name and the driver of the first NVIDIA GPU, from nvidia-smi; None without one."""
    query = output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    return query.splitlines()[0] if query else None


def output(*command: str, folder: Path | None = None) -> str:
    """The standard output of a command; empty if it does not exist, fails or takes more than 30 s."""
    try:
        finished = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return finished.stdout.strip() if finished.returncode == 0 else ""


def _cpuinfo(*names: str) -> str:
    """The first value of any of these fields in /proc/cpuinfo; empty without one."""
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
    kib = number_in(Path("/proc/meminfo"), "MemAvailable:")
    if kib is not None:
        return kib * 1024
    try:  # macOS has no /proc/meminfo: the total memory has to do
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
        # Inactive pages of files do not count as used: the kernel drops them first. The kubelet does the same.
        return max(0, limit - max(0, taken - (number_in(root / statistics, f"{idle} ") or 0)))
    return None


def number_in(path: Path, beginning: str) -> int | None:
    """The number in the file's first line with this ``beginning``; None without one."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(beginning)), None)
