"""The machine that a figure was measured on: without it a figure means nothing.

``python -m benchmarks.machine`` prints the description as JSON.
"""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from service import __version__
from service.host import machine as host
from service.settings import available_cores

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
    """Returns processor, cores, memory, system, versions and commit as plain JSON values.

    ``cores`` is the number that this process may use (affinity and cgroup quota), ``host_cores`` the host's.
    ``load`` is the mean number of runnable tasks in the last minute: a value near ``cores`` before a measurement
    means other work.
    """
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": host.cpu_model(),
        "extensions": host.cpu_extensions(),
        "cores": available_cores(),
        "host_cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": host.gpu(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": _versions(),
        "version": __version__,
        "commit": _commit(),
        "load": round(os.getloadavg()[0], 2),
    }


def one_line(machine: dict[str, Any]) -> str:
    """Returns the description for a caption: processor, cores, extensions, memory, date."""
    extensions = ", ".join(machine["extensions"])
    gpu = f" · {machine['gpu']}" if machine["gpu"] else ""
    return (
        f"{machine['cpu']}, {machine['cores']} of {machine['host_cores']} cores ({extensions}), "
        f"{machine['memory_gib']} GiB{gpu} · {machine['system']} · {machine['date']}"
    )


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _commit() -> str | None:
    """Returns the checkout's commit, with ``+`` if there are uncommitted changes."""
    commit = _git("rev-parse", "--short", "HEAD")
    if not commit:
        return None
    return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*command: str) -> str:
    return host.output("git", *command, folder=Path(__file__).parent)


if __name__ == "__main__":
    print(json.dumps(describe(), indent=2))
