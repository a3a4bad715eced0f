"""The process tree, and each process's CPU time, memory and open files, read from ``/proc``.

On a system without ``/proc`` all results are empty.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from service.host.machine import number_in

#: Clock ticks a second, the unit of the times in ``/proc/PID/stat``.
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
#: Places of utime, stime and rss (in pages) among the fields of ``/proc/PID/stat`` that follow the name; see proc(5).
_USER, _SYSTEM, _RESIDENT = 11, 12, 21
_SUPERVISOR = "supervisor"
#: Names of the service's own processes, without their numbers.
_OWN = frozenset({"engine", "frontend", "decoder"})


@dataclass
class Usage:
    """The sums over all processes of one name. ``open_files`` counts only processes whose files may be listed."""

    cpu_seconds: float = 0.0
    resident_bytes: int = 0
    open_files: int = 0


def name_process(name: str) -> None:
    """Names this process for ``ps``, ``top`` and `by_process`. The kernel keeps 15 bytes of ``name``."""
    if sys.platform == "linux":
        Path("/proc/self/comm").write_text(name[:15])


def by_process(supervisor: int) -> dict[str, Usage]:
    """The usage of the process ``supervisor`` and all its descendants, by the name of the process.

    A process without one of the service's names counts as its parent.
    """
    found: dict[str, Usage] = {}
    waiting = [(_SUPERVISOR, supervisor)]
    while waiting:
        name, pid = waiting.pop()
        fields = stat_fields(pid)
        if not fields:
            continue
        usage = found.setdefault(name, Usage())
        usage.cpu_seconds += (int(fields[_USER]) + int(fields[_SYSTEM])) / CLOCK_TICKS
        usage.resident_bytes += int(fields[_RESIDENT]) * _PAGE
        usage.open_files += _open_files(pid)
        waiting += [(_name(child, name), child) for child in children(pid)]
    return found


def memory_bytes(pid: int) -> int:
    """The proportional set size of the process, or else its resident memory; 0 if it does not exist."""
    kib = number_in(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")
    if kib is not None:
        return kib * 1024
    fields = stat_fields(pid)
    return int(fields[_RESIDENT]) * _PAGE if fields else 0


def trim_memory() -> None:
    """Gives freed memory back to the system, where the C library can (glibc); it keeps what lies below a used block."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def tree(pid: int) -> list[int]:
    """``pid`` and its descendants."""
    found = [pid]
    for parent in found:
        found.extend(children(parent))
    return found


def children(pid: int) -> list[int]:
    """The children of ``pid``, zombies included, in ascending order.

    Found by every process's parent id, since ``/proc/PID/task/TID/children`` may omit some while another one ends.
    """
    if not os.path.isdir("/proc"):
        return []
    pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    return [child for child in pids if (fields := stat_fields(child)) and int(fields[1]) == pid]


def stat_fields(pid: int) -> list[str]:
    """The fields of ``/proc/PID/stat`` after the name, beginning with the state; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _name(pid: int, parent: str) -> str:
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip().partition("-")[0]
    except OSError:
        return parent
    return name if name in _OWN else parent


def _open_files(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0
