"""The machine that a figure was measured on: a figure without it says nothing.

``python -m benchmarks.machine`` prints the description as JSON.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from service import __version__
from service.settings import available_cores

#: Extensions of the instruction set that decide how fast a model runs, by their name in /proc/cpuinfo.
_EXTENSIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimddp")

#: Packages that a figure here may depend on.
_PACKAGES = (
    "torch",
    "torchvision",
    "openvino",
    "nncf",
    "onnxruntime",
    "numpy",
    "pillow",
    "fastapi",
    "uvicorn",
    "httptools",
    "uvloop",
)


def describe() -> dict[str, Any]:
    """Processor, cores, memory, system, versions and commit, as plain JSON values.

    ``cores`` is what this process may use (affinity and cgroup quota), ``host_cores`` what there is. ``load``
    is the mean number of runnable tasks of the last minute: anything near ``cores`` before a measurement
    says that it had company.
    """
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu_model(),
        "extensions": _extensions(),
        "cores": available_cores(),
        "host_cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": _gpu(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": _versions(),
        "version": __version__,
        "commit": _commit(),
        "load": round(os.getloadavg()[0], 2),
    }


def one_line(machine: dict[str, Any]) -> str:
    """The description for a caption: processor, cores, extensions, memory, date."""
    extensions = ", ".join(machine["extensions"])
    gpu = f" · {machine['gpu']}" if machine["gpu"] else ""
    return (
        f"{machine['cpu']}, {machine['cores']} of {machine['host_cores']} cores ({extensions}), "
        f"{machine['memory_gib']} GiB{gpu} · {machine['system']} · {machine['date']}"
    )


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


def _cpu_model() -> str:
    """With family and model number: hypervisors like to call all of them ``AMD EPYC``."""
    name = _cpuinfo("model name") or platform.processor() or platform.machine()
    family, model = _cpuinfo("cpu family"), _cpuinfo("model")
    return f"{name} (family {family} model {model})" if family else name


def _extensions() -> list[str]:
    flags = set(_cpuinfo("flags", "Features").split())
    return [name for name in _EXTENSIONS if name in flags]


def _gpu() -> str | None:
    query = _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    return query.splitlines()[0] if query else None


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _commit() -> str | None:
    """The checkout's commit, with ``+`` when it has changes that are not committed."""
    commit = _output("git", "rev-parse", "--short", "HEAD")
    if not commit:
        return None
    return commit + ("+" if _output("git", "status", "--porcelain", "--untracked-files=no") else "")


def _output(*command: str) -> str:
    try:
        finished = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return finished.stdout.strip() if finished.returncode == 0 else ""


if __name__ == "__main__":
    print(json.dumps(describe(), indent=2))
