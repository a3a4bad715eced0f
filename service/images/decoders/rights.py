"""Rights that a decoder gives up for good before it sees a client's bytes.

    no descriptors    all but its socket are closed and no new one can be opened: no file, no socket, no pipe
    no children       no fork, for a user that is not root
    no traces         no core dumps, and no other process reads its memory
    memory            its address space is limited, anew for each picture (`Bounds`)
    Landlock          no file system, no TCP, no signals and no ptrace beyond itself, where the kernel has it
    last in line      the kernel's OOM killer takes a decoder before anything else
    no orphan         it is killed when its keeper ends

Landlock is three system calls whose numbers are the same on every architecture. A seccomp filter would need
libseccomp, which slim images lack, or numbers for each architecture; what it would add is mostly denied by the
missing descriptors.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import struct
from collections.abc import Iterable
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
SIGKILL = 9
#: ``landlock_create_ruleset`` and ``landlock_restrict_self``; the flag that asks for the version.
_CREATE_RULESET, _RESTRICT_SELF, _ASK_VERSION = 444, 446, 1
#: By Landlock's version: the rights on files, the rights on TCP ports, and the scopes that it can take away.
_FILES = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_PORTS, _SCOPES = {4: 0b11}, {6: 0b11}
_PAGE = resource.getpagesize()
#: Above every OOM score that a pod's other processes have.
_FIRST_TO_GO = "1000"


class Bounds:
    """The limit of this process's address space. Construct it when everything is loaded."""

    def __init__(self) -> None:
        self._memory = os.open("/proc/self/statm", os.O_RDONLY)  # stays open: no file can be opened later
        self._used = self._pages()
        self._at = 0

    def allow(self, size: int) -> None:
        """Lets this process take ``size`` bytes more than it had at construction."""
        if size != self._at:
            resource.setrlimit(resource.RLIMIT_AS, (self._used + size, resource.RLIM_INFINITY))
            self._at = size

    @property
    def descriptor(self) -> int:
        return self._memory

    def _pages(self) -> int:
        return int(os.pread(self._memory, 100, 0).split()[0]) * _PAGE


def close_all_but(kept: Iterable[int]) -> None:
    """Closes every descriptor of this process that is not ``kept``."""
    kept = set(kept)
    for number in [int(name) for name in os.listdir("/proc/self/fd")]:
        if number not in kept:
            with contextlib.suppress(OSError):  # one number is the listing's own
                os.close(number)


def die_with(parent: int) -> None:
    """Lets the kernel kill this process when its parent, process ``parent``, ends."""
    _prctl(_PR_SET_PDEATHSIG, SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def give_up() -> None:
    """Gives up all rights but memory. Call it last, when nothing is left to open."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    restrict_by_landlock()
    _prctl(_PR_SET_DUMPABLE, 0)
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE):
        resource.setrlimit(limit, (0, 0))


def restrict_by_landlock() -> bool:
    """Takes away every right that Landlock knows. Returns False where the kernel lacks it or a sandbox hides it."""
    version = _LIBC.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION)
    if version < 1:
        return False
    words = [_newest(rights, version) for rights in (_FILES, _PORTS, _SCOPES)]
    while not words[-1]:
        words.pop()  # older kernels know a shorter structure
    attributes = struct.pack(f"@{len(words)}Q", *words)
    ruleset = _LIBC.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return False
    restricted: int = _LIBC.syscall(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    return restricted == 0


def _newest(rights: dict[int, int], version: int) -> int:
    return max((value for since, value in rights.items() if since <= version), default=0)


def _prctl(option: int, value: int) -> None:
    _LIBC.prctl(option, *(ctypes.c_ulong(number) for number in (value, 0, 0, 0)))


_LIBC = ctypes.CDLL(None, use_errno=True)
