"""File descriptors: raises their limit, divides them, and keeps a few in reserve."""

from __future__ import annotations

import contextlib
import logging
import os
import resource

log = logging.getLogger(__name__)

#: Descriptors of a front-end that are no connections: counters, engine, event loop, imports, TLS handshakes.
_OWN = 96
#: The largest useful number of connections of one front-end.
_MAX_DESCRIPTORS = 65_536
#: The number of connections below which the log says that the limit is small.
_FEW = 1000
#: Descriptors in reserve: twice as many as a message of the supervisor may bring.
_SPARE = 8


def raise_limit() -> None:
    """Raises the soft limit on descriptors as far as the hard limit allows. Children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_DESCRIPTORS + _OWN if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS + _OWN)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connections(asked: int | None) -> int:
    """The number of connections that one front-end may have open: what is ``asked`` for (None: all), if it fits."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    fits = max(1, min(_MAX_DESCRIPTORS, limit - _OWN if limit > 2 * _OWN else limit // 2))
    return min(fits, asked or fits)


def complaint(asked: int | None) -> str | None:
    """A sentence for the log if the limit on descriptors is too small, else None."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)[0], connections(asked)
    if most >= min(asked or _FEW, _MAX_DESCRIPTORS):
        return None
    return (
        f"ulimit -n is {limit}, so each front-end keeps {most} connections at most and closes idle ones past that; "
        "raise it for more (docker: --ulimit nofile=65536, systemd: LimitNOFILE=65536)"
    )


class Reserve:
    """Descriptors kept for the supervisor's messages when all others are in use: `release` before one, `hold` after."""

    def __init__(self) -> None:
        self._held: list[int] = []
        self.hold()

    def hold(self) -> None:
        """Takes free descriptors until the reserve is full."""
        with contextlib.suppress(OSError):
            while len(self._held) < _SPARE:
                self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    def release(self) -> None:
        while self._held:
            os.close(self._held.pop())
