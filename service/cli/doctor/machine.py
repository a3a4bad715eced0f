"""Checks of the host's processor, cores, memory, limits, folders and port."""

from __future__ import annotations

import math
import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from service.cli.doctor.finding import Finding, failed, passed, warned
from service.host import machine as host
from service.settings import Settings, available_cores
from service.shared.transport import PROCESSES

#: The memory that the service needs: `_BASE_MB` megabytes for supervisor, front-ends and engine, and a multiple of
#: the fp32 weights' bytes. The multiple covers torch's copy, the converted one and, for models of `_SMALL_BYTES` at
#: most, one copy for each way of running a batch. The figures come from benchmarks.models.
_BASE_MB, _TIMES_SMALL, _TIMES_LARGE, _SMALL_BYTES = 600, 6.5, 3.3, 256 * 2**20
#: File descriptors that are enough: each connection takes one, and a load balancer opens many.
_DESCRIPTORS = 4096


def python_and_system() -> Finding:
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    found = f"Python {platform.python_version()}, {system}"
    if not PROCESSES:
        return warned(
            "system", found, "good for trying: without Linux everything runs as threads of one process"
        )
    return passed("system", found)


def processor(extensions: Sequence[str], name: str) -> Finding:
    """Checks the instruction set. ``extensions`` are spelled as in /proc/cpuinfo."""
    found = f"{name}: {', '.join(extensions) or 'none of the extensions that matter'}"
    if "asimddp" in extensions or platform.machine() in ("arm64", "aarch64"):
        return passed("cpu", found)
    if "avx2" not in extensions:
        return warned(
            "cpu", found, "without AVX2 a model runs several times slower; take another machine type"
        )
    if "avx512f" not in extensions:
        return passed("cpu", f"{found}; no AVX-512: fp32 at AVX2's speed")
    gains = {"bf16": ("avx512_bf16", "amx_bf16"), "int8": ("avx512_vnni", "avx_vnni", "amx_int8")}
    fast = [kind for kind, names in gains.items() if set(names) & set(extensions)]
    return passed("cpu", f"{found}; fast in fp32{''.join(f', {kind}' for kind in fast)}")


def threads(quota: float | None, affinity: int, environment: Mapping[str, str]) -> Finding:
    """Compares the cores by affinity with the cgroup's quota, and checks ``OMP_NUM_THREADS``."""
    cores = max(1, min(affinity, math.ceil(quota or affinity)))
    found = f"{affinity} cores by affinity, " + (f"cgroup quota {quota:g}" if quota else "no cgroup quota")
    found += f": {cores} used"
    if quota and quota != int(quota):
        return warned(
            "threads",
            found,
            f"a quota of {quota:g} stops {cores} threads in the middle of a batch; give whole cores to the container",
        )
    asked = environment.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) != cores:
        return warned(
            "threads",
            found,
            f"OMP_NUM_THREADS={asked} is in the environment; unset it, threads follow the cores",
        )
    return passed("threads", found)


def memory(free: int | None, parameters: int) -> Finding:
    """Checks that ``free`` bytes suffice for a model of ``parameters``; None: the system does not say."""
    weights = 4 * parameters
    need = _BASE_MB * 1e6 + (_TIMES_SMALL if weights <= _SMALL_BYTES else _TIMES_LARGE) * weights
    found = f"about {need / 2**30:.1f} GiB needed for {parameters / 1e6:.0f} M parameters"
    if free is None:
        return warned(
            "memory", found, "this system does not say how much is free; see that it is more than that"
        )
    found = f"{free / 2**30:.1f} GiB free, {found}"
    if free < need:
        return failed("memory", found, "raise the container's limit, end something, or take a smaller model")
    if free < 1.5 * need:
        return warned(
            "memory",
            found,
            "large photos and batches take more for moments; half as much again is comfortable",
        )
    return passed("memory", found)


def descriptors() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft:,} open files a process"
    if 0 <= soft < _DESCRIPTORS:
        more = (
            f"ulimit -n {_DESCRIPTORS}"
            if hard < 0 or hard >= _DESCRIPTORS
            else "raise LimitNOFILE or the hard limit"
        )
        return warned("open files", found, f"each connection takes one; {more} for many clients")
    return passed("open files", found)


def counters() -> Finding:
    """Checks the temporary folder, which holds the counters of ``/metrics``. The service cannot start without it."""
    folder = Path(tempfile.gettempdir())
    if problem := unwritable(folder):
        return failed(
            "temporary folder", f"{folder}: {problem}", "mount a writable /tmp, or set TMPDIR to one"
        )
    return passed("temporary folder", f"{folder} is writable (counters of /metrics)")


def cache(check: str, folder: Path, variable: str, *, room_mib: int = 0) -> Finding:
    """Checks a folder that keeps a download or a conversion of ``room_mib`` MiB for the next start."""
    if problem := unwritable(folder):
        return warned(
            check,
            f"{folder}: {problem}",
            f"each start does the work again; mount a volume, or point {variable} to one",
        )
    free_mib = shutil.disk_usage(_existing(folder)).free / 2**20
    if free_mib < room_mib:
        return warned(
            check,
            f"{folder}: {free_mib:,.0f} MiB free, {room_mib:,} MiB needed",
            f"make room, or change {variable}",
        )
    return passed(check, f"{folder} is writable, {free_mib / 1024:,.0f} GiB free")


def port(settings: Settings) -> Finding:
    """Checks that the service can listen on its host and port."""
    where = f"{settings.host} port {settings.port}"
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[
            0
        ]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        advice = "something listens there already: end it, or choose another with --port"
        if isinstance(error, PermissionError):
            advice = "ports below 1024 want a privilege; choose another with --port"
        elif isinstance(error, socket.gaierror) or error.errno == 99:
            advice = "this host has no such address; 0.0.0.0 means every interface"
        return failed("port", f"{where}: {error.strerror or error}", advice)
    return passed("port", f"{where} is free")


def unwritable(folder: Path) -> str:
    """The reason why no file can be made in ``folder``, or in its nearest existing parent; empty if one can."""
    place = _existing(folder)
    if not place.is_dir():
        return f"{place} is no folder"
    try:
        with tempfile.TemporaryFile(dir=place):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _existing(folder: Path) -> Path:
    return next((place for place in (folder, *folder.parents) if place.exists()), Path("/"))


def checks(settings: Settings, parameters: int) -> list[Finding]:
    """Runs the checks of this module that need no cache folder. ``parameters`` is the model's number of them."""
    affinity = len(os.sched_getaffinity(0)) if sys.platform == "linux" else available_cores()
    return [
        python_and_system(),
        processor(host.cpu_extensions(), host.cpu_model()),
        threads(host.cpu_quota(), affinity, os.environ),
        memory(host.free_memory(), parameters),
        descriptors(),
        counters(),
        port(settings),
    ]
