"""Processes as ``/proc`` tells of them: who started whom, and the CPU time, memory and files of each.

Everything here is empty on a system without ``/proc``.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

#: Of the times in ``/proc/PID/stat``, in a second.
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
#: Fields of ``/proc/PID/stat`` behind the name (proc(5)): utime, stime, rss in pages.
_USER, _SYSTEM, _RESIDENT = 11, 12, 21
_SUPERVISOR = "supervisor"
#: Names of the service's own processes, without their numbers.
_OWN = frozenset({"engine", "frontend", "decoder"})


@dataclass
class Usage:
    """Of all processes of one name together. ``open_files`` leaves out those that hide theirs."""

    cpu_seconds: float = 0.0
    resident_bytes: int = 0
    open_files: int = 0


def name_process(name: str) -> None:
    """Gives this process a ``name``, cut after 15 bytes, for ``ps``, ``top`` and `by_process`."""
    if sys.platform == "linux":
        Path("/proc/self/comm").write_text(name[:15])


def by_process(supervisor: int) -> dict[str, Usage]:
    """What the process ``supervisor`` and everything that it started use, by name.

    A process that has no name of the service's counts to the one that started it.
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


def resident_bytes(pid: int) -> int:
    """What the process has in memory; 0 for one that is not there."""
    fields = stat_fields(pid)
    return int(fields[_RESIDENT]) * _PAGE if fields else 0


def tree(pid: int) -> list[int]:
    """``pid`` and its descendants."""
    found = [pid]
    for parent in found:
        found.extend(children(parent))
    return found


def children(pid: int) -> list[int]:
    """Processes that ``pid`` started and has not buried, by their numbers.

    From every process's own word: ``/proc/PID/task/TID/children`` leaves some out while another one ends.
    """
    if not os.path.isdir("/proc"):
        return []
    pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    return [child for child in pids if (fields := stat_fields(child)) and int(fields[1]) == pid]


def stat_fields(pid: int) -> list[str]:
    """What ``/proc/PID/stat`` says after the name, the state first; empty for a process that is not there."""
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
