"""Temporary folders whose owner was killed: the next service that makes such a folder finds and removes them.

An owner holds a lock on a file in its folder. The kernel releases it however the owner ends, so a free lock means a
dead owner. Process ids would not do: a volume can outlive its container, and in the next one they begin again at 1.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path

log = logging.getLogger(__name__)

_LOCK = "owner.lock"
#: The lock file's name until it is locked. So a file with the final name is locked, unless its owner is dead.
_UNLOCKED = "owner.lock.new"
#: Seconds after which an empty folder without a lock has no owner; a living one locks it within microseconds.
_NEWBORN = 60.0


class Claim:
    """The lock on a folder, held until `close` or the end of this process."""

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder / _UNLOCKED, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (folder / _UNLOCKED).rename(folder / _LOCK)

    def close(self) -> None:
        """Closes this process's copy of the lock. A forked child that must not keep the folder calls it at once."""
        os.close(self._descriptor)


def remove(prefix: str) -> None:
    """Removes all temporary folders whose names begin with ``prefix`` and whose owners are dead."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        try:
            if _is_dead(folder):
                shutil.rmtree(folder)
                log.info("removed %s, which a service that was killed had left", folder)
        except OSError as error:  # another user's folder, or another start is removing it
            log.debug("%s stays: %s", folder, error.strerror)


def _is_dead(folder: Path) -> bool:
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        unborn = all(path.name == _UNLOCKED for path in folder.iterdir())
        return unborn and time.time() - folder.stat().st_mtime > _NEWBORN
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
